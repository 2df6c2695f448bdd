//! Processes that take turns, a call each, in every order that there is.
//!
//! One process runs at a time. Before each call it asks who is next, and waits only if that is another one.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Nothing in these tests may take so long.
const DEADLINE: Duration = Duration::from_secs(120);

/// Every order, one after the other: depth first.
#[derive(Debug)]
pub(crate) struct Orders {
    /// For each choice of this run: what was chosen, of how many.
    path: Vec<(usize, usize)>,
    at: usize,
    /// Who is interrupted although it could go on, at most so often in a run.
    interruptions_max: usize,
    interruptions: usize,
}

impl Orders {
    /// All orders in which processes are interrupted at most so often; `usize::MAX` for all.
    pub(crate) fn new(interruptions_max: usize) -> Self {
        Self {
            path: Vec::new(),
            at: 0,
            interruptions_max,
            interruptions: 0,
        }
    }

    /// Who of those that have something left to do is next. `last` was, and may not have finished.
    fn choose(&mut self, ready: &[usize], last: usize) -> usize {
        let goes_on = ready.contains(&last);
        if ready.len() == 1 || goes_on && self.interruptions >= self.interruptions_max {
            return if goes_on { last } else { ready[0] };
        }
        if self.at == self.path.len() {
            self.path.push((0, ready.len()));
        }
        let (chosen, of) = self.path[self.at];
        assert_eq!(of, ready.len(), "a run is not repeatable");
        self.at += 1;
        self.interruptions += usize::from(goes_on && ready[chosen] != last);
        ready[chosen]
    }

    /// Prepares the next order. Returns whether there is one.
    pub(crate) fn next(&mut self) -> bool {
        assert_eq!(self.at, self.path.len(), "a run is not repeatable");
        (self.at, self.interruptions) = (0, 0);
        while self
            .path
            .pop_if(|(chosen, of)| *chosen + 1 == *of)
            .is_some()
        {}
        match self.path.last_mut() {
            Some((chosen, _)) => {
                *chosen += 1;
                true
            }
            None => false,
        }
    }
}

#[derive(Debug)]
struct State {
    orders: Orders,
    /// The processes that have something left to do.
    ready: Vec<usize>,
    turn: usize,
}

/// Whose turn it is.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
    bell: Condvar,
}

impl Turns {
    /// `processes` begin, in the order that is prepared.
    pub(crate) fn new(processes: usize, mut orders: Orders) -> Arc<Self> {
        let ready: Vec<_> = (0..processes).collect();
        let turn = orders.choose(&ready, usize::MAX);
        let state = State {
            orders,
            ready,
            turn,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            bell: Condvar::new(),
        })
    }

    /// Has a process run when it is its turn, to its end.
    pub(crate) fn run<T>(&self, process: usize, act: impl FnOnce() -> T) -> T {
        /// Also when it panics.
        struct Finish<'a>(&'a Turns, usize);
        impl Drop for Finish<'_> {
            fn drop(&mut self) {
                let mut state = self.0.state.lock().unwrap();
                state.ready.retain(|one| *one != self.1);
                if !state.ready.is_empty() {
                    let ready = state.ready.clone();
                    state.turn = state.orders.choose(&ready, self.1);
                }
                self.0.bell.notify_all();
            }
        }
        self.await_turn(process);
        let _finish = Finish(self, process);
        act()
    }

    fn await_turn(&self, process: usize) {
        let state = self.state.lock().unwrap();
        let waited = self
            .bell
            .wait_timeout_while(state, DEADLINE, |state| state.turn != process);
        assert!(!waited.unwrap().1.timed_out(), "another process hangs");
    }

    /// A process is about to make a call.
    pub(super) fn before_call(&self, process: usize) {
        let mut state = self.state.lock().unwrap();
        let ready = state.ready.clone();
        state.turn = state.orders.choose(&ready, process);
        if state.turn != process {
            self.bell.notify_all();
            drop(state);
            self.await_turn(process);
        }
    }

    /// The orders, when all processes have finished.
    pub(crate) fn into_orders(self: Arc<Self>) -> Orders {
        let turns = Arc::into_inner(self).expect("all processes have finished");
        turns.state.into_inner().unwrap().orders
    }
}
