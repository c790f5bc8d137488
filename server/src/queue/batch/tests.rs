//! What travels together and who gets which answer, without a Redis: the group has no queue, so nothing takes off by itself.

use super::*;

/// Items are sizes in bytes.
#[derive(Debug)]
struct Fake;

impl Operation for Fake {
    const NAME: &'static str = "ack";
    type Item = usize;
    type Output = usize;

    fn group(_: &Queue) -> &Group<Self> {
        unreachable!("no queue carries it")
    }

    fn bytes(item: &usize) -> usize {
        *item
    }

    async fn run(_: &Arc<Queue>, _: &[&usize]) -> Result<Answers<usize>, Error> {
        unreachable!("nothing takes off")
    }
}

fn group() -> Group<Fake> {
    Group::new(Weak::new(), &Metrics::new())
}

fn sizes(load: &[Call<Fake>]) -> Vec<usize> {
    load.iter().map(|call| call.items.len()).collect()
}

/// Answers every item with itself.
fn echo(load: Vec<Call<Fake>>) {
    let answers = load.iter().flat_map(|call| &call.items).map(|item| Ok(*item)).collect();
    deal(load, answers);
}

#[tokio::test]
async fn calls_that_wait_travel_together_and_each_gets_its_own_answers_in_order() {
    let group = group();
    let (first, second, third) = (group.submit(vec![1]), group.submit(vec![2, 3]), group.submit(vec![4]));
    let load = group.load();
    assert_eq!(sizes(&load), [1, 2, 1]);
    echo(load);
    assert_eq!(first.one().await, Ok(1));
    assert_eq!(second.all().await, [Ok(2), Ok(3)]);
    assert_eq!(third.one().await, Ok(4));
    assert!(group.load().is_empty());
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_nothing_from_the_others() {
    let group = group();
    drop(group.submit(vec![1]));
    let stays = group.submit(vec![2]);
    echo(group.load());
    assert_eq!(stays.one().await, Ok(2));
}

#[tokio::test]
async fn an_error_of_the_script_call_is_everybodys() {
    let group = group();
    let (first, second) = (group.submit(vec![1, 2]), group.submit(vec![3]));
    let mut answers = Vec::new();
    append(&mut answers, Err(Error::StoreOutOfMemory), 3);
    deal(group.load(), answers);
    assert_eq!(
        first.all().await,
        [Err(Error::StoreOutOfMemory), Err(Error::StoreOutOfMemory)]
    );
    assert_eq!(second.one().await, Err(Error::StoreOutOfMemory));
}

#[tokio::test]
async fn a_call_without_items_is_answered_at_once() {
    assert_eq!(group().submit(Vec::new()).all().await, []);
}

#[tokio::test]
async fn a_load_ends_at_its_bounds_and_a_call_beyond_them_is_alone() {
    let group = group();
    let _pending = [
        group.submit(vec![0; MAX_GROUP_ITEMS - 1]),
        group.submit(vec![0; 2]),
        group.submit(vec![MAX_GROUP_BYTES + 1]),
        group.submit(vec![1]),
        group.submit(vec![0; 3 * MAX_GROUP_ITEMS]),
    ];
    assert_eq!(sizes(&group.load()), [MAX_GROUP_ITEMS - 1]);
    assert_eq!(sizes(&group.load()), [2]);
    assert_eq!(sizes(&group.load()), [1]);
    assert_eq!(sizes(&group.load()), [1]);
    assert_eq!(sizes(&group.load()), [3 * MAX_GROUP_ITEMS]);
}

fn portion_sizes(load: &[Call<Fake>]) -> Vec<usize> {
    portions(load).iter().map(Vec::len).collect()
}

#[tokio::test]
async fn no_script_call_carries_more_than_its_bounds_unless_the_items_go_all_or_none() {
    let group = group();
    let many: Vec<usize> = (0..=2 * MAX_GROUP_ITEMS).collect();
    let third = MAX_GROUP_BYTES / 3;
    let pending = [
        group.submit(many.clone()),
        group.submit(vec![third, third, third, third, MAX_GROUP_BYTES + 1, 1]),
        group.submit_whole(many.clone()),
        group.submit(vec![1]),
    ];
    let load = group.load();
    assert_eq!(portion_sizes(&load), [MAX_GROUP_ITEMS, MAX_GROUP_ITEMS, 1]);
    let in_order: Vec<usize> = portions(&load).concat().into_iter().copied().collect();
    assert_eq!(in_order, many);
    // A single item beyond the bound is a script call of its own.
    assert_eq!(portion_sizes(&group.load()), [3, 1, 1, 1]);
    assert_eq!(portion_sizes(&group.load()), [2 * MAX_GROUP_ITEMS + 1]);
    drop(pending);
}

#[tokio::test]
async fn calls_that_fit_together_are_one_script_call() {
    let group = group();
    let _pending = [group.submit(vec![1; 3]), group.submit_whole(vec![1; 3])];
    assert_eq!(portion_sizes(&group.load()), [6]);
}

#[test]
fn what_redis_did_not_take_keeps_back_the_rest_of_its_call_and_other_errors_do_not() {
    let unavailable = |unknown| Error::StoreUnavailable {
        what: "no answer in time",
        unknown,
    };
    assert_eq!(of_the_rest(&unavailable(true)), Some(unavailable(false)));
    assert_eq!(of_the_rest(&Error::StoreOutOfMemory), Some(Error::StoreOutOfMemory));
    assert_eq!(of_the_rest(&Error::Bug("WRONGTYPE".into())), None);
}

#[tokio::test]
async fn a_panic_is_an_error_of_each_item_and_the_flight_goes_on() {
    let result = unless_it_panics::<Answers<usize>>(async { panic!("a defect, planted by a test") }).await;
    let mut answers = Vec::new();
    append(&mut answers, result, 2);
    assert!(
        matches!(&answers[..], [Err(Error::Bug(_)), Err(Error::Bug(_))]),
        "{answers:?}"
    );
    append(&mut answers, Ok(vec![Ok(1)]), 2);
    assert_eq!(
        answers.len(),
        4,
        "each item has an answer even if the operation has not"
    );
}

#[tokio::test]
async fn a_flight_that_is_lost_is_no_answer_and_says_so_for_each_item() {
    let group = group();
    let pending = group.submit(vec![1, 2]);
    drop(group.load());
    assert_eq!(
        pending.all().await,
        [Err(Error::ShuttingDown), Err(Error::ShuttingDown)]
    );
}
