//! What the tests of links share.

use std::future::Future;
use std::time::Duration;

/// Far beyond what anything here takes; only a hang reaches it. Under a paused clock it expires as soon
/// as nothing else can happen.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for an event that must come.
pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, event)
        .await
        .expect("the event did not come")
}
