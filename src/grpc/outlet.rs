//! The way to one subscriber. Nothing is made for it before it has taken what it was given: what waits for somebody who
//! does not read is not in memory, but in the store. What is sent: `runs.rs` and `audit.rs`.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

/// Boxed: a channel keeps room for 32 of whatever it carries.
type Item<T> = Box<Result<T, Status>>;

/// Our end.
pub(super) struct Outlet<T> {
    items: mpsc::Sender<Item<T>>,
    wishes: Arc<Semaphore>,
}

/// The subscriber's end, which the connection asks for more whenever there is room in it.
pub(super) struct Items<T> {
    items: mpsc::Receiver<Item<T>>,
    wishes: Arc<Semaphore>,
    wish: Wish,
}

/// Whether what comes next has been asked for already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Untold,
    Told,
}

/// The subscriber is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Both ends. At most one item lies between them, and a last word.
pub(super) fn outlet<T>() -> (Outlet<T>, Items<T>) {
    let (sender, receiver) = mpsc::channel(2);
    let wishes = Arc::new(Semaphore::new(0));
    let items = Items { items: receiver, wishes: wishes.clone(), wish: Wish::Untold };
    (Outlet { items: sender, wishes }, items)
}

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), wishes: self.wishes.clone() }
    }
}

impl<T> Outlet<T> {
    /// Waits until the subscriber asks for something; for ever where it has gone: see [`Self::closed`].
    pub(super) async fn wanted(&self) {
        // The wish stays: it is fulfilled by what is sent.
        drop(self.wishes.acquire().await);
    }

    /// Gives the subscriber something, as soon as it asks for it.
    pub(super) async fn send(&self, item: Result<T, Status>) -> Result<(), Gone> {
        self.wishes.acquire().await.map_err(|_| Gone)?.forget();
        self.items.try_send(Box::new(item)).map_err(|_| Gone)
    }

    /// Tells the subscriber why its stream ends before its time, whenever it reads on.
    pub(super) fn say_farewell(self, why: Status) {
        drop(self.items.try_send(Box::new(Err(why))));
    }

    /// Returns once the subscriber has gone.
    pub(super) async fn closed(&self) {
        self.items.closed().await;
    }
}

impl<T> Stream for Items<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.wish == Wish::Untold {
            self.wish = Wish::Told;
            self.wishes.add_permits(1);
        }
        let item = self.items.poll_recv(cx);
        if item.is_ready() {
            self.wish = Wish::Untold;
        }
        item.map(|item| item.map(|item| *item))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;

    #[test]
    fn nothing_is_wanted_before_the_subscriber_asks_and_nothing_more_before_it_has_taken_that() {
        let (outlet, mut items) = outlet::<u8>();
        assert!(outlet.wanted().now_or_never().is_none());
        assert!(items.next().now_or_never().is_none(), "it asks");
        assert!(outlet.wanted().now_or_never().is_some());
        assert!(outlet.send(Ok(1)).now_or_never().unwrap().is_ok());
        assert!(outlet.wanted().now_or_never().is_none());
        assert!(items.next().now_or_never().is_some());
        assert!(outlet.wanted().now_or_never().is_none(), "it has not asked for another");
    }

    #[test]
    fn a_farewell_finds_room_beside_what_was_not_taken() {
        let (outlet, mut items) = outlet::<u8>();
        assert!(items.next().now_or_never().is_none());
        assert!(outlet.send(Ok(1)).now_or_never().unwrap().is_ok());
        outlet.say_farewell(Status::unavailable("stopping"));
        assert!(items.next().now_or_never().unwrap().unwrap().is_ok());
        assert!(items.next().now_or_never().unwrap().unwrap().is_err());
        assert!(items.next().now_or_never().unwrap().is_none());
    }
}
