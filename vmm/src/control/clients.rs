//! Who is connected to the control socket, and who makes room for others.
//!
//! Places are few. One that is taken by somebody who says nothing, or who does not take its answer, goes to the next
//! one who comes. What must not be done here: read or write.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Clients served side by side.
pub(super) const CLIENTS_MAX: usize = 32;
/// How many of them may wait for something that has not happened yet.
pub(super) const WAITING_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Clients {
    /// In the order in which they came.
    places: Mutex<Vec<Place>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Place {
    number: u64,
    /// Closed to make room.
    stream: UnixStream,
    doing: Doing,
}

/// What a client is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// It is to send its question, or to take its answer.
    Talking,
    /// Its question is being answered.
    Asking,
    /// It waits for something to happen.
    Waiting,
}

/// A client's place, until this is dropped.
#[derive(Debug)]
pub(super) struct Client {
    number: u64,
    clients: Arc<Clients>,
}

impl Clients {
    /// A place for a new client; `None` if there is none. One who only talks loses its own to it, the oldest first.
    pub(super) fn enter(self: &Arc<Self>, stream: &UnixStream) -> Option<Client> {
        let stream = stream.try_clone().ok()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut places = self.places.lock();
        if places.len() >= CLIENTS_MAX {
            let oldest = places.iter().position(|it| it.doing == Doing::Talking)?;
            // Its thread sees the end of it, and ends. A client that has gone cannot be shut out.
            let _ = places.remove(oldest).stream.shutdown(Shutdown::Both);
        }
        places.push(Place {
            number,
            stream,
            doing: Doing::Talking,
        });
        Some(Client {
            number,
            clients: Arc::clone(self),
        })
    }
}

impl Client {
    /// Its question is there, and is answered from now on.
    pub(super) fn asks(&self) {
        self.is_now(Doing::Asking);
    }

    /// Its answer is there.
    pub(super) fn is_told(&self) {
        self.is_now(Doing::Talking);
    }

    /// Whether it may wait for something to happen. If so, it does from now on.
    pub(super) fn may_wait(&self) -> bool {
        let mut places = self.clients.places.lock();
        let waiting = places.iter().filter(|it| it.doing == Doing::Waiting);
        if waiting.count() >= WAITING_MAX {
            return false;
        }
        set(&mut places, self.number, Doing::Waiting);
        true
    }

    fn is_now(&self, doing: Doing) {
        set(&mut self.clients.places.lock(), self.number, doing);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut places = self.clients.places.lock();
        places.retain(|place| place.number != self.number);
    }
}

/// Does nothing if the place has gone to somebody else.
fn set(places: &mut [Place], number: u64, doing: Doing) {
    if let Some(place) = places.iter_mut().find(|place| place.number == number) {
        place.doing = doing;
    }
}
