//! Random operations on the real scripts and on a model, compared after every step, and made small when they differ.
//!
//! `BANANAS_MODEL_CASES` and `BANANAS_MODEL_STEPS` ask for more than the normal run; `BANANAS_MODEL_SEED` repeats a
//! run.

mod acts;
mod compare;
mod drive;
mod enqueue;
mod job;
mod operation;
mod queue;
mod settle;

use std::{cell::RefCell, collections::BTreeMap, panic::AssertUnwindSafe, time::Duration};

use bananas_broker::domain::{RoutingKey, state::TRANSITIONS};
use bananas_harness::redis_server::RedisServer;
use drive::Drive;
use job::Bounds;
use operation::Operation;
use proptest::{
    strategy::Strategy as _,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use queue::Queue;

use crate::space::Space;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn random_operations_do_what_the_model_does() {
    let cases = setting("BANANAS_MODEL_CASES", 64) as u32;
    let steps = setting("BANANAS_MODEL_STEPS", 60) as usize;
    let seed = setting("BANANAS_MODEL_SEED", fastrand::u64(..));
    println!("BANANAS_MODEL_SEED={seed} BANANAS_MODEL_CASES={cases} BANANAS_MODEL_STEPS={steps}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(RedisServer::shared());
    let space = runtime.block_on(Space::new(server));
    // One deduplication memory that is large enough for a case, and one that begins new generations all the time.
    let spaces = [1_000_000, 4].map(|remembered_ids| {
        let space = runtime.block_on(space.with("model", |policy| {
            policy.dedupe_window = Duration::from_hours(24);
            policy.dedupe_max_ids = remembered_ids;
            policy.max_losses = 2;
            policy.max_unconfirmed = 2;
        }));
        (RefCell::new(space), remembered_ids)
    });
    let moves = RefCell::new(BTreeMap::new());
    let number = RefCell::new(0);
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &key));
    let strategy = (proptest::bool::ANY, operation::operations(steps))
        .prop_map(|(small, operations)| (usize::from(small), operations));
    let case = |which: usize, operations: &[Operation]| {
        let (space, remembered_ids) = &spaces[which];
        *number.borrow_mut() += 1;
        let name = RoutingKey::parse(&format!("case{}", number.borrow())).unwrap();
        let keys = space.borrow().store.keys(&name);
        space.borrow_mut().keys = keys;
        let space = space.borrow();
        let policy = space.store.policy();
        let model = Queue::new(Bounds {
            remembered_ids: *remembered_ids as usize,
            max_losses: policy.max_losses,
            max_unconfirmed: policy.max_unconfirmed,
            success_retention_ms: policy.success_retention.as_millis() as u64,
            failure_retention_ms: policy.failure_retention.as_millis() as u64,
        });
        let mut drive = Drive::new(&space, model);
        let run = std::panic::catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                for operation in operations {
                    drive.step(operation).await;
                }
            });
        }));
        for index in &drive.model.moves {
            *moves.borrow_mut().entry(*index).or_insert(0) += 1;
        }
        // The keys of a failed case stay, so that they can be examined.
        if run.is_ok() {
            runtime.block_on(space.forget());
        }
        run.map_err(|panic| TestCaseError::fail(text_of(panic.as_ref())))
    };
    for which in 0..spaces.len() {
        case(which, &operation::every_move()).expect("each move, one after the other");
    }
    let missing: Vec<_> = (0..TRANSITIONS.len())
        .filter(|index| !moves.borrow().contains_key(index))
        .map(|index| TRANSITIONS[index])
        .collect();
    assert!(missing.is_empty(), "moves that were not made: {missing:?}");
    let outcome = runner.run(&strategy, |(which, operations)| case(which, &operations));
    for (index, cases) in &*moves.borrow() {
        println!("{:?} in {cases} cases", TRANSITIONS[*index]);
    }
    if let Err(failure) = outcome {
        panic!("BANANAS_MODEL_SEED={seed}: {failure}");
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic")
        .to_owned()
}
