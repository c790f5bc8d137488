//! Catches panics of handlers, with the stack where they happened.

use std::{
    any::Any,
    backtrace::Backtrace,
    cell::{Cell, RefCell},
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    pin::Pin,
    sync::Once,
    task::{Context, Poll},
};

use bananas_proto::v1::Failure;

use crate::job::outcome::Outcome;

thread_local! {
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
    static STACK: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic that ended a handler.
#[derive(Debug)]
pub(crate) struct Panicked {
    pub(crate) text: String,
    pub(crate) stack: String,
}

impl Panicked {
    /// A failed attempt with the text and the stack of the panic.
    pub(crate) fn into_outcome(self) -> Outcome {
        Outcome::Retry {
            failure: Failure {
                r#type: "Panic".to_owned(),
                message: format!("PANIC: {}", self.text),
                stack: self.stack,
            },
            delay: None,
        }
    }
}

/// Installs a panic hook that stores the stack of panics inside handlers, because the stack is gone when the panic is
/// caught. The hook before it still runs, for these panics and all others.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if IN_HANDLER.get() {
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                let stack = format!("at {place}\n{}", Backtrace::force_capture());
                STACK.with_borrow_mut(|slot| *slot = Some(stack));
            }
            before(info);
        }));
    });
}

/// Runs `work` and turns a panic into an error.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let outer = IN_HANDLER.replace(true);
    // Unwind safety of what the handler shares is up to the handler, as for a thread that panics.
    let result = catch_unwind(AssertUnwindSafe(work));
    IN_HANDLER.set(outer);
    result.map_err(|payload| Panicked {
        text: text_of(payload.as_ref()),
        stack: STACK.with_borrow_mut(Option::take).unwrap_or_default(),
    })
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is not text".to_owned()
    }
}

/// A future that turns its panic into an error.
#[derive(Debug)]
pub(crate) struct CatchPanic<F>(pub(crate) F);

impl<F: Future + Unpin> Future for CatchPanic<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch(|| Pin::new(&mut self.0).poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panicked) => Poll::Ready(Err(panicked)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_of_a_future_has_text_and_stack() {
        install_hook();
        let future = Box::pin(async {
            tokio::task::yield_now().await;
            let number: Option<u32> = None;
            assert!(number.is_some(), "no number for {}", "job 7");
        });
        let panicked = CatchPanic(future).await.unwrap_err();
        assert_eq!(panicked.text, "no number for job 7");
        assert!(panicked.stack.contains("panics.rs"), "{}", panicked.stack);
    }

    #[test]
    fn value_of_work_without_a_panic_is_returned() {
        assert_eq!(catch(|| 7).unwrap(), 7);
    }
}
