//! Two nodes with machines on real KVM: what becomes of the guest when the machine of one breaks.

use std::path::Path;
use std::sync::mpsc::Receiver;

use understudy_replication::arbiter::FileArbiter;
use understudy_replication::core::policy::Policy;
use understudy_transport::Endpoint;

use super::*;
use crate::devices::lock;
use crate::machine::tests::{COUNTING, Numbers, Rig, rig, standby};

const PATIENCE: Duration = Duration::from_secs(60);

struct Host {
    node: Node,
    /// What the guest says here.
    numbers: Receiver<u32>,
    device: Arc<std::sync::Mutex<Numbers>>,
}

impl Host {
    fn start(rig: Rig, start_as: StartAs) -> Self {
        let Rig {
            machine,
            numbers,
            read_from,
        } = rig;
        let machine = Mutex::new(Some(machine));
        let build = move |_| {
            let machine = machine.lock().take();
            machine.ok_or_else(|| "it is built once".into())
        };
        let settings = NodeSettings {
            start_as,
            ..settings(Box::new(build))
        };
        Self {
            node: Node::start(settings).unwrap(),
            numbers,
            device: read_from,
        }
    }

    fn await_standing(&self, what: &str, wanted: impl Fn(&Standing) -> bool) {
        let watch = self.node.handle().watch();
        let found = watch.wait_until(Instant::now() + PATIENCE, wanted);
        assert!(found.is_some(), "not {what}: {:?}", watch.now());
    }

    /// A bug shows in a device.
    fn breaks(&self) {
        let mut device = lock(&self.device);
        device.panics_at_events = true;
        device.event.write(1).unwrap();
    }

    /// What was wrong with its machine, when it ends because the guest is the standby's.
    fn trouble_at_its_end(self) -> String {
        self.await_standing("over", |now| now.ended.is_some());
        match self.node.wait().unwrap() {
            Ended::LeftToStandby { what } => what,
            Ended::HandedOver { trouble, .. } => trouble.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn goes_on(&self) {
        self.numbers.recv_timeout(PATIENCE).expect("the guest runs");
    }
}

fn means(directory: &Path) -> ReplicationSettings {
    ReplicationSettings {
        arbiter: Arc::new(FileArbiter::open(directory.join("arbiter")).unwrap()),
        host: None,
        // A busy machine is no lost host.
        policy: Policy {
            heartbeat_timeout: Duration::from_secs(2),
            ..Policy::default()
        },
        heartbeat: None,
        backup: None,
        listen: None,
        priority: crate::config::Priority::Normal,
        can_start: false,
    }
}

/// The second one is the first one's standby.
fn pair(directory: &Path) -> [Host; 2] {
    let endpoint = Endpoint::Unix(directory.join("channel"));
    let replication = ReplicationSettings {
        listen: Some(endpoint.clone()),
        ..means(directory)
    };
    let second = Host::start(standby(), StartAs::Standby { replication });
    second.await_standing("ready", |now| now.role == Role::Standby);
    let replication = ReplicationSettings {
        backup: Some(endpoint),
        ..means(directory)
    };
    let start_over = false;
    let start_as = StartAs::Primary {
        replication,
        start_over,
    };
    let first = Host::start(rig(COUNTING), start_as);
    first.await_standing("protected", |now| now.protected);
    first.goes_on();

    [first, second]
}

#[test]
fn a_guest_whose_machine_breaks_goes_on_at_the_standby_and_ends_if_it_breaks_that_too() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = pair(directory.path());
    first.breaks();
    let trouble = first.trouble_at_its_end();
    assert!(trouble.contains("panicked"), "{trouble}");
    second.await_standing("promoted", |now| now.role == Role::Primary);
    second.goes_on();

    second.breaks();
    let Ended::GuestFailed { what } = second.node.wait().unwrap() else {
        panic!("it goes on where both machines broke");
    };
    assert!(what.contains("it is the guest that breaks them"), "{what}");
}

#[test]
fn a_guest_whose_machine_cannot_be_captured_any_more_goes_on_at_the_standby() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = pair(directory.path());
    let device = Arc::clone(&first.device);
    let hangs = lock(&device);
    let trouble = first.trouble_at_its_end();
    assert!(
        trouble.contains("has not let the guest be captured"),
        "{trouble}"
    );
    second.await_standing("promoted", |now| now.role == Role::Primary);
    second.goes_on();
    drop(hangs);
}
