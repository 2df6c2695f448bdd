//! The threads of a disk: they do work on the storage, which may hang, and say when it is done.
//!
//! Threads are started when there is work that no other one is free for, so a standby has none. What is done
//! is fetched by the device, which is woken through an event. What must not be done here: wait for a
//! thread without a deadline, or touch guest memory.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use vmm_sys_util::eventfd::EventFd;

use super::work::{Medium, Outcome, Work};

/// Most threads of a disk. One request that hangs keeps no other one waiting, unless the disk does them in turn, as a copied
/// one does with what changes it.
const THREADS_MAX: usize = 4;
/// How long whoever gives the disk up waits for calls of the storage that are under way. Its image is closed with the
/// last of them.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Tells one piece of work from all others of a disk.
pub(super) type Ticket = u64;

/// Has the device answer what is done, unless it is busy.
pub(super) type OnDone = Arc<dyn Fn() -> bool + Send + Sync>;

struct Job {
    ticket: Ticket,
    work: Work,
    is_safe: bool,
}

#[derive(Default)]
struct Queues {
    waiting: VecDeque<Job>,
    done: VecDeque<(Ticket, Outcome)>,
    threads: usize,
    idle: usize,
    is_over: bool,
    has_panicked: bool,
}

struct Pool {
    medium: Medium,
    queues: Mutex<Queues>,
    /// Rings when there is work, when all is over, and when a thread has ended.
    changed: Condvar,
    /// Has the device answer, without another thread in between.
    answer: Mutex<Option<OnDone>>,
    /// Signalled when something is done, and nobody has answered it.
    done: Arc<EventFd>,
}

/// The threads, as their device holds them.
pub(super) struct Workers {
    name: String,
    pool: Arc<Pool>,
    handles: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Threads for the disk `name`; `done` is signalled when something is done.
    pub(super) fn new(name: &str, medium: Medium, done: Arc<EventFd>) -> Self {
        Self {
            name: name.into(),
            pool: Arc::new(Pool {
                medium,
                queues: Mutex::default(),
                changed: Condvar::new(),
                answer: Mutex::new(None),
                done,
            }),
            handles: Vec::new(),
        }
    }

    /// Has `work` done.
    ///
    /// # Errors
    /// If the host has no thread for it.
    pub(super) fn submit(&mut self, ticket: Ticket, work: Work, is_safe: bool) -> io::Result<()> {
        let mut queues = self.pool.queues.lock();
        if queues.waiting.len() >= queues.idle && queues.threads < THREADS_MAX {
            let pool = Arc::clone(&self.pool);
            let thread = std::thread::Builder::new().name(format!("blk-{}", self.name));
            match thread.spawn(move || pool.serve()) {
                Ok(handle) => {
                    queues.threads += 1;
                    self.handles.push(handle);
                }
                Err(error) if queues.threads == 0 => return Err(error),
                Err(_) => {}
            }
        }
        queues.waiting.push_back(Job {
            ticket,
            work,
            is_safe,
        });
        drop(queues);
        self.pool.changed.notify_one();
        Ok(())
    }

    /// From now on, a thread that has done something calls `answer`. It returns false if the device is busy; then the
    /// device is woken through its event.
    pub(super) fn answer_by(&self, answer: OnDone) {
        *self.pool.answer.lock() = Some(answer);
    }

    /// Takes something that is done.
    pub(super) fn take_done(&self) -> Option<(Ticket, Outcome)> {
        self.pool.queues.lock().done.pop_front()
    }

    /// Whether a thread has panicked, so that some work will never be done.
    pub(super) fn has_panicked(&self) -> bool {
        self.pool.queues.lock().has_panicked
    }

    /// Drops the work that no thread has begun, and says which that was.
    pub(super) fn cancel(&self) -> Vec<Ticket> {
        let waiting = std::mem::take(&mut self.pool.queues.lock().waiting);
        waiting.iter().map(|job| job.ticket).collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut queues = self.pool.queues.lock();
        queues.is_over = true;
        queues.waiting.clear();
        self.pool.changed.notify_all();
        let here = std::thread::current().id();
        if self
            .handles
            .iter()
            .any(|handle| handle.thread().id() == here)
        {
            // This thread has let go of the device last, while it answered.
            return;
        }
        let busy = |queues: &mut Queues| queues.threads > 0;
        let waited = self
            .pool
            .changed
            .wait_while_for(&mut queues, busy, END_PATIENCE);
        drop(queues);
        if waited.timed_out() {
            let disk = &self.name;
            tracing::warn!(
                disk,
                "the host's storage does not answer: the image stays open until it does, or this process ends"
            );
            return;
        }
        for handle in self.handles.drain(..) {
            // A panic has been reported already.
            let _ = handle.join();
        }
    }
}

/// A thread that has ended, however that was: another one may take its place.
struct Ended<'a>(&'a Pool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut queues = self.0.queues.lock();
        queues.threads -= 1;
        queues.has_panicked |= std::thread::panicking();
        drop(queues);
        if std::thread::panicking() {
            // The device tells of it.
            let _ = self.0.done.write(1);
        }
        self.0.changed.notify_all();
    }
}

impl Pool {
    fn serve(&self) {
        let _ended = Ended(self);
        while let Some(job) = self.next() {
            let outcome = job.work.perform(&self.medium, job.is_safe);
            self.queues.lock().done.push_back((job.ticket, outcome));
            let answer = self.answer.lock().clone();
            if !answer.is_some_and(|answer| answer()) {
                // Fails only if the counter is full; the device is going to look then anyway.
                let _ = self.done.write(1);
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queues = self.queues.lock();
        loop {
            if queues.is_over {
                return None;
            }
            if let Some(job) = queues.waiting.pop_front() {
                return Some(job);
            }
            queues.idle += 1;
            self.changed.wait(&mut queues);
            queues.idle -= 1;
        }
    }
}
