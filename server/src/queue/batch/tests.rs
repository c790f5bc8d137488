//! Which calls travel together and which results each gets, without Redis: a collector on its own sends nothing.

use super::*;

/// Items are sizes in bytes.
#[derive(Debug)]
struct Fake;

impl Operation for Fake {
    const NAME: &'static str = "ack";
    type Item = usize;
    type Output = usize;

    fn bytes(item: &usize) -> usize {
        *item
    }

    async fn run(_: &Arc<QueueCore>, _: &[&usize]) -> Result<Results<usize>, Error> {
        unreachable!("a collector sends nothing")
    }
}

fn collector() -> Collector<Fake> {
    Collector::new(&Metrics::new())
}

impl Collector<Fake> {
    fn submit(&self, items: Vec<usize>) -> Submitted<usize> {
        self.add(items, false).0
    }

    fn submit_whole(&self, items: Vec<usize>) -> Submitted<usize> {
        self.add(items, true).0
    }
}

fn sizes(batch: &[Call<Fake>]) -> Vec<usize> {
    batch.iter().map(|call| call.items.len()).collect()
}

/// Results every item with itself.
fn echo(batch: Vec<Call<Fake>>) {
    let results = batch
        .iter()
        .flat_map(|call| &call.items)
        .map(|item| Ok(*item))
        .collect();
    reply(batch, results);
}

#[tokio::test]
async fn calls_that_wait_travel_together_and_each_gets_its_own_answers_in_order() {
    let collector = collector();
    let (first, second, third) = (
        collector.submit(vec![1]),
        collector.submit(vec![2, 3]),
        collector.submit(vec![4]),
    );
    let batch = collector.next_batch();
    assert_eq!(sizes(&batch), [1, 2, 1]);
    echo(batch);
    assert_eq!(first.one().await, Ok(1));
    assert_eq!(second.all().await, [Ok(2), Ok(3)]);
    assert_eq!(third.one().await, Ok(4));
    assert!(collector.next_batch().is_empty());
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_nothing_from_the_others() {
    let collector = collector();
    drop(collector.submit(vec![1]));
    let stays = collector.submit(vec![2]);
    echo(collector.next_batch());
    assert_eq!(stays.one().await, Ok(2));
}

#[tokio::test]
async fn an_error_of_the_script_call_is_the_result_of_every_item() {
    let collector = collector();
    let (first, second) = (collector.submit(vec![1, 2]), collector.submit(vec![3]));
    let mut results = Vec::new();
    append(&mut results, Err(Error::StoreOutOfMemory), 3);
    reply(collector.next_batch(), results);
    assert_eq!(
        first.all().await,
        [Err(Error::StoreOutOfMemory), Err(Error::StoreOutOfMemory)]
    );
    assert_eq!(second.one().await, Err(Error::StoreOutOfMemory));
}

#[tokio::test]
async fn a_call_without_items_returns_at_once() {
    assert_eq!(collector().submit(Vec::new()).all().await, []);
}

#[tokio::test]
async fn a_batch_ends_at_its_bounds_and_a_call_beyond_them_is_alone() {
    let collector = collector();
    let _pending = [
        collector.submit(vec![0; MAX_GROUP_ITEMS - 1]),
        collector.submit(vec![0; 2]),
        collector.submit(vec![MAX_GROUP_BYTES + 1]),
        collector.submit(vec![1]),
        collector.submit(vec![0; 3 * MAX_GROUP_ITEMS]),
    ];
    assert_eq!(sizes(&collector.next_batch()), [MAX_GROUP_ITEMS - 1]);
    assert_eq!(sizes(&collector.next_batch()), [2]);
    assert_eq!(sizes(&collector.next_batch()), [1]);
    assert_eq!(sizes(&collector.next_batch()), [1]);
    assert_eq!(sizes(&collector.next_batch()), [3 * MAX_GROUP_ITEMS]);
}

fn part_sizes(batch: &[Call<Fake>]) -> Vec<usize> {
    split(batch).iter().map(Vec::len).collect()
}

#[tokio::test]
async fn no_script_call_carries_more_than_its_bounds_unless_the_items_go_all_or_none() {
    let collector = collector();
    let many: Vec<usize> = (0..=2 * MAX_GROUP_ITEMS).collect();
    let third = MAX_GROUP_BYTES / 3;
    let pending = [
        collector.submit(many.clone()),
        collector.submit(vec![third, third, third, third, MAX_GROUP_BYTES + 1, 1]),
        collector.submit_whole(many.clone()),
        collector.submit(vec![1]),
    ];
    let batch = collector.next_batch();
    assert_eq!(part_sizes(&batch), [MAX_GROUP_ITEMS, MAX_GROUP_ITEMS, 1]);
    let in_order: Vec<usize> = split(&batch).concat().into_iter().copied().collect();
    assert_eq!(in_order, many);
    // A single item beyond the bound is a script call of its own.
    assert_eq!(part_sizes(&collector.next_batch()), [3, 1, 1, 1]);
    assert_eq!(part_sizes(&collector.next_batch()), [2 * MAX_GROUP_ITEMS + 1]);
    drop(pending);
}

#[tokio::test]
async fn calls_that_fit_together_are_one_script_call() {
    let collector = collector();
    let _pending = [collector.submit(vec![1; 3]), collector.submit_whole(vec![1; 3])];
    assert_eq!(part_sizes(&collector.next_batch()), [6]);
}

#[test]
fn a_part_that_redis_refuses_holds_back_the_rest_of_its_call_and_other_errors_do_not() {
    let unavailable = |unknown| Error::StoreUnavailable {
        what: "no reply in time",
        unknown,
    };
    assert_eq!(error_for_remaining(&unavailable(true)), Some(unavailable(false)));
    assert_eq!(
        error_for_remaining(&Error::StoreOutOfMemory),
        Some(Error::StoreOutOfMemory)
    );
    assert_eq!(error_for_remaining(&Error::Bug("WRONGTYPE".into())), None);
}

#[tokio::test]
async fn a_panic_is_an_error_of_each_item() {
    let result = catch_panic::<Results<usize>>(async { panic!("a defect, made by a test") }).await;
    let mut results = Vec::new();
    append(&mut results, result, 2);
    assert!(
        matches!(&results[..], [Err(Error::Bug(_)), Err(Error::Bug(_))]),
        "{results:?}"
    );
    append(&mut results, Ok(vec![Ok(1)]), 2);
    assert_eq!(
        results.len(),
        4,
        "each item gets a result even if the operation returns too few"
    );
}

#[tokio::test]
async fn a_batch_that_is_lost_is_an_error_of_each_item() {
    let collector = collector();
    let pending = collector.submit(vec![1, 2]);
    drop(collector.next_batch());
    assert_eq!(
        pending.all().await,
        [Err(Error::ShuttingDown), Err(Error::ShuttingDown)]
    );
}
