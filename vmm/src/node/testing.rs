//! A node without a machine, for tests of what uses nodes.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::events::{EventKind, EventLog};
use super::inbox::{Item, inbox};
use super::roles::Sources;
use super::{
    Denial, Ended, NodeHandle, NodeMetrics, Request, Role, RoleStatus, Standing, StatusWatch,
    UnprotectedRole, UnprotectedStatus,
};

/// The handle of an unprotected guest that can be asked and stopped. Ends with its handle.
pub(crate) fn unprotected() -> NodeHandle {
    let role = RoleStatus::Unprotected(Box::new(UnprotectedStatus {
        role: UnprotectedRole::Unprotected,
        vm: "web".into(),
        node: "host-a".into(),
        protected: false,
        output: Default::default(),
        disks: Default::default(),
    }));
    let sources = Sources::Frozen(Box::new((role, NodeMetrics::default())));
    let (inbox, mut incoming) = inbox().expect("a runtime");
    let handle = NodeHandle {
        inbox,
        log: EventLog::new("web", "host-a"),
        watch: StatusWatch::default(),
        sources: Arc::new(Mutex::new(Some(sources))),
        disks: Arc::default(),
        since: Instant::now(),
    };
    handle.log.tell(EventKind::RoleBegan {
        role: Role::Unprotected,
    });
    handle.watch.set(Standing {
        role: Role::Unprotected,
        ..Standing::default()
    });
    let node = handle.clone();
    std::thread::spawn(move || {
        while let Some(Item::Request(request, answer)) = incoming.next(None) {
            let done = match request {
                Request::Stop | Request::Leave => Ok(()),
                _ => Err(Denial::Unprotected),
            };
            if let Some(answer) = answer {
                answer.try_send(done.clone()).unwrap();
            }
            if done.is_ok() {
                node.log.tell(EventKind::Ended(Ended::Stopped));
                node.watch.set(Standing {
                    role: Role::Ended,
                    ended: Some(Ended::Stopped),
                    ..Standing::default()
                });
                break;
            }
        }
    });
    handle
}
