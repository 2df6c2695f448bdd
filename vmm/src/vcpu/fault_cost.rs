//! What the first write to a write-protected page costs a guest on this host: from a tenth of a microsecond to
//! thirty, depending on the processor, on KVM, and on what this host itself runs in.
//!
//! Measured by a trial: a vCPU writes to a few hundred pages that are protected, and then again, when they are
//! not. What must not be done here: draw conclusions from it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::trial::Trial;
use crate::kvm::{DirtyLog, KvmDirtyLog, KvmError, System};

/// The least busy of so many attempts counts: whatever else happens on the host only adds to each.
const ATTEMPTS: usize = 4;
const PAGES: u32 = 480;
/// All pages of the trial's memory.
const LOG: [u64; 8] = [u64::MAX; 8];

/// ```asm
/// mov rdi, 0x20000
/// mov ecx, 480
/// next: mov [rdi], al
/// add rdi, 0x1000
/// dec ecx
/// jnz next
/// out 0x80, al
/// ```
const WRITES: [u8; 27] = [
    0x48, 0xc7, 0xc7, 0x00, 0x00, 0x02, 0x00, 0xb9, 0xe0, 0x01, 0x00, 0x00, 0x88, 0x07, 0x48, 0x81,
    0xc7, 0x00, 0x10, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf3, 0xe6, 0x80,
];

/// What it costs. Measured once, and kept for the life of the process. Zero if this KVM cannot leave pages
/// unprotected one by one, or if it cannot be measured, which does no harm: then all pages are protected.
pub fn fault_cost(system: &System) -> Duration {
    static ANSWER: OnceLock<Duration> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        if system.capabilities().manual_dirty_log_flags == 0 {
            return Duration::ZERO;
        }
        match measure(system) {
            Ok(Some(cost)) => {
                tracing::debug!(
                    ?cost,
                    "what the first write to a protected page costs a guest"
                );
                cost
            }
            Ok(None) => {
                tracing::warn!(
                    "the trial of what a write to a protected page costs did not finish"
                );
                Duration::ZERO
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(
                    error,
                    "cannot find out what a write to a protected page costs"
                );
                Duration::ZERO
            }
        }
    })
}

/// `None` if this KVM does not run the trial.
fn measure(system: &System) -> Result<Option<Duration>, KvmError> {
    let trial = Trial::new(system, &WRITES)?;
    let pages = trial.memory.slot_pages();
    let mut log = KvmDirtyLog::new(Arc::clone(&trial.vm), pages, system.capabilities())?;
    trial.memory.attach(&trial.vm, true)?;
    // The first run of all gets the memory from the host.
    let mut least = (Duration::MAX, run(&trial)?);
    for _ in 0..ATTEMPTS {
        log.clear(0, 0, LOG.len() as u32 * 64, &LOG)
            .map_err(|source| KvmError::Call {
                call: "protect the memory of a trial VM".into(),
                source,
            })?;
        let (Some(protected), Some(open)) = (run(&trial)?, run(&trial)?) else {
            return Ok(None);
        };
        least = (least.0.min(protected), least.1.map(|least| least.min(open)));
    }
    Ok(least.1.map(|open| least.0.saturating_sub(open) / PAGES))
}

fn run(trial: &Trial) -> Result<Option<Duration>, KvmError> {
    let began = Instant::now();
    Ok(trial.run_user()?.map(|_| began.elapsed()))
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn the_trial_writes_to_each_page_once() {
        let system = System::open().unwrap();
        let mut code = WRITES;
        // Writes `cl`, which counts down, instead of `al`.
        code[13] = 0x0f;
        let trial = Trial::new(&system, &code).unwrap();
        assert!(trial.run_user().unwrap().is_some());
        let byte = |page: u64| {
            let at = GuestAddress(page << 12);
            trial.memory.ram().read_obj::<u8>(at).unwrap()
        };
        for page in 0x20..0x200 {
            assert_eq!(byte(page), (0x200 - page) as u8, "{page:#x}");
        }
        assert_eq!(byte(0x1f), 0);
    }

    #[test]
    fn a_fault_costs_something_and_not_the_world() {
        let system = System::open().unwrap();
        if system.capabilities().manual_dirty_log_flags == 0 {
            assert_eq!(fault_cost(&system), Duration::ZERO);
            return;
        }
        let cost = measure(&system).unwrap().unwrap();
        assert!(cost < Duration::from_millis(100), "{cost:?}");
        assert_eq!(fault_cost(&system), fault_cost(&system));
    }
}
