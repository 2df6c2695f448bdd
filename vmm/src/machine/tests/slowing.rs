//! A guest that is slowed.

use understudy_replication::core::throttle::RunShare;
use understudy_replication::ports::Machine as _;

use super::*;

/// Long enough for the guest to say something if it could.
const MOMENT: Duration = Duration::from_millis(50);

/// Waits until the vCPU has left the guest because its slice is over.
fn await_end_of_slice(vcpu: &VcpuThread) {
    let began = Instant::now();
    while vcpu.wait_parked_for(MOMENT).is_err() || !vcpu.is_held() {
        assert!(began.elapsed() < DEADLINE, "a slice does not end");
    }
}

#[test]
fn a_vcpu_that_is_held_stands_still_whatever_else_it_is_told_until_it_is_released() {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    rig.await_number(10);
    let vcpus = rig.machine.vcpus.clone();
    vcpus.iter().for_each(|vcpu| vcpu.hold().unwrap());
    // It leaves the guest by itself; a pause has to wait for that only.
    drop(rig.machine.pause_guest().unwrap());
    let last = rig.heard();
    let quiet = rig.numbers.recv_timeout(MOMENT);
    assert!(quiet.is_err(), "said {quiet:?} while held, after {last:?}");

    // It can be captured as it stands, and stays held.
    let mut paused = rig.machine.pause_guest().unwrap();
    paused.save_state(&mut Vec::new()).unwrap();
    drop(paused);
    assert!(rig.numbers.recv_timeout(MOMENT).is_err());

    vcpus.iter().for_each(VcpuThread::release);
    rig.next();
}

#[test]
fn a_slice_ends_by_itself_and_another_one_follows() {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    rig.await_number(10);
    let vcpus = rig.machine.vcpus.clone();
    // It runs when the first one is given, and stands still for the others.
    for _ in 0..3 {
        for vcpu in vcpus.iter() {
            vcpu.run_for(MOMENT).unwrap();
            await_end_of_slice(vcpu);
            assert!(vcpu.ran_for() >= MOMENT);
        }
        rig.next();
        rig.numbers.try_iter().for_each(drop);
        assert!(rig.numbers.recv_timeout(MOMENT).is_err());
    }
    vcpus.iter().for_each(VcpuThread::release);
    rig.next();
}

#[test]
fn a_slice_that_a_pause_interrupts_goes_on_after_it() {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    rig.await_number(10);
    let vcpus = rig.machine.vcpus.clone();
    vcpus
        .iter()
        .for_each(|vcpu| vcpu.run_for(4 * MOMENT).unwrap());
    drop(rig.machine.pause_guest().unwrap());
    rig.next();
    for vcpu in vcpus.iter() {
        await_end_of_slice(vcpu);
        assert!(vcpu.ran_for() >= 4 * MOMENT);
    }
    vcpus.iter().for_each(VcpuThread::release);
    rig.next();
}

#[test]
fn a_pause_outlasts_the_end_of_a_hold() {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    rig.await_number(10);
    let vcpus = rig.machine.vcpus.clone();
    let paused = rig.machine.pause_guest().unwrap();
    vcpus.iter().for_each(|vcpu| vcpu.hold().unwrap());
    vcpus.iter().for_each(VcpuThread::release);
    rig.numbers.try_iter().for_each(drop);
    assert!(rig.numbers.recv_timeout(MOMENT).is_err());
    drop(paused);
    rig.next();
}

#[test]
fn a_guest_goes_on_at_any_speed_and_can_be_captured_and_stopped_meanwhile() {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    let speed = rig.machine.speed().expect("it can be slowed");
    for parts in [2, 16, 512] {
        speed.set(RunShare::FULL.divided(parts));
        for _ in 0..3 {
            rig.next();
            let mut paused = rig.machine.pause_guest().unwrap();
            paused.save_state(&mut Vec::new()).unwrap();
        }
    }
    speed.set(RunShare::FULL);
    rig.heard();
    rig.next();
    speed.set(RunShare::LEAST);
    rig.next();
    rig.machine.shut_down();
}
