//! What hosts and guests do after their boot: `begin.sh`, then each a script of its own from this folder.

/// The whole init that goes on with this script.
pub(super) fn script(further: &str) -> String {
    [include_str!("begin.sh"), further].concat()
}
