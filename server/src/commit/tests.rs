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
    answer(load, Ok(answers));
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
    answer(group.load(), Err(Error::StoreOutOfMemory));
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
async fn a_load_ends_at_its_bounds_but_never_splits_a_call() {
    let group = group();
    let _pending = [
        group.submit(vec![0; MAX_GROUP_ITEMS - 1]),
        group.submit(vec![0; 2]),
        group.submit(vec![MAX_GROUP_BYTES + 1]),
        group.submit(vec![1]),
    ];
    assert_eq!(sizes(&group.load()), [MAX_GROUP_ITEMS - 1]);
    assert_eq!(sizes(&group.load()), [2]);
    // Larger than the bound by itself: it goes alone.
    assert_eq!(sizes(&group.load()), [1]);
    assert_eq!(sizes(&group.load()), [1]);
}

#[tokio::test]
async fn a_flight_that_is_lost_is_no_answer_and_says_so() {
    let group = group();
    let pending = group.submit(vec![1]);
    drop(group.load());
    assert_eq!(pending.one().await, Err(Error::ShuttingDown));
}
