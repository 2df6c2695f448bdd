use proptest::prelude::*;

use super::{Bucket, EpochQueue};
use crate::ids::EpochId;

/// Numbers; each counts one byte.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Numbers(Vec<u32>);

impl Bucket for Numbers {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn append(older: &mut Numbers, later: Numbers) {
    older.0.extend(later.0);
}

fn queue(sealed: &[(u64, &[u32])], current: &[u32]) -> EpochQueue<Numbers> {
    let mut queue = EpochQueue::<Numbers>::default();
    for (epoch, numbers) in sealed {
        queue.current_mut().0.extend(*numbers);
        queue.seal(EpochId(*epoch));
    }
    queue.current_mut().0.extend(current);
    queue
}

fn numbers(buckets: impl Iterator<Item = Numbers>) -> Vec<u32> {
    buckets.flat_map(|bucket| bucket.0).collect()
}

#[test]
fn epochs_leave_in_order_and_only_through_the_one_that_may() {
    let mut queue = queue(&[(1, &[1, 2]), (2, &[3]), (4, &[4])], &[5]);
    assert_eq!(queue.bytes(), 5);
    let due = queue.sealed_through(EpochId(3)).cloned();
    assert_eq!(numbers(due), [1, 2, 3]);
    assert_eq!(queue.bytes(), 5, "looking takes nothing out");
    assert_eq!(numbers(queue.release(EpochId(3))), [1, 2, 3]);
    assert_eq!(queue.bytes(), 2);
    assert!(numbers(queue.release(EpochId(3))).is_empty());
    assert_eq!(queue.current().0, [5], "the epoch that runs does not leave");
}

#[test]
fn whoever_stops_in_the_middle_of_a_release_leaves_the_rest() {
    let mut queue = queue(&[(1, &[1]), (2, &[2]), (3, &[3])], &[]);
    assert_eq!(queue.release(EpochId(3)).next(), Some(Numbers(vec![1])));
    assert_eq!(queue.bytes(), 2);
    assert_eq!(numbers(queue.release(EpochId(3))), [2, 3]);
}

#[test]
fn an_epoch_that_is_never_shipped_becomes_part_of_the_one_that_runs() {
    let mut queue = queue(&[(1, &[1]), (2, &[2]), (3, &[3])], &[4]);
    queue.unseal(EpochId(2), append);
    assert_eq!(queue.current().0, [2, 3, 4]);
    assert_eq!(queue.last_sealed(), Some(EpochId(1)));
    assert_eq!(queue.bytes(), 4);
    queue.seal(EpochId(2));
    assert_eq!(numbers(queue.release(EpochId(2))), [1, 2, 3, 4]);
}

#[test]
fn epochs_in_which_nothing_happens_take_no_place() {
    let mut queue = queue(&[], &[]);
    (1..=1000).for_each(|epoch| queue.seal(EpochId(epoch)));
    assert_eq!(queue.sealed.len(), 0);
    assert_eq!(queue.last_sealed(), None);
}

proptest! {
    #[test]
    fn nothing_is_lost_doubled_or_reordered(steps in prop::collection::vec(0..8u8, 1..200)) {
        let mut queue = EpochQueue::<Numbers>::default();
        let (mut next, mut epoch, mut released, mut out) = (0, 0, 0, Vec::new());
        for step in steps {
            match step {
                0 => {
                    released = epoch.min(released + 1);
                    out.extend(numbers(queue.release(EpochId(released))));
                }
                1 if epoch > released => {
                    queue.unseal(EpochId(epoch), append);
                    epoch -= 1;
                }
                2 | 3 => {
                    epoch += 1;
                    queue.seal(EpochId(epoch));
                }
                _ => {
                    queue.current_mut().0.push(next);
                    next += 1;
                }
            }
            prop_assert_eq!(queue.bytes() + out.len() as u64, u64::from(next));
        }
        queue.seal(EpochId(epoch + 1));
        out.extend(numbers(queue.release(EpochId(epoch + 1))));
        prop_assert_eq!(out, (0..next).collect::<Vec<_>>());
    }
}
