//! Whether the backup could take over now as far as the arbiter is concerned (R9): both sides have
//! seen the same mark in the record a moment ago, and the backup's arbiter takes claims.
//!
//! Must not be done here: asking anybody. The cores ask; this remembers what they were told.

use std::time::Duration;

use crate::core::policy::Policy;

/// After so many checks' time without a proof, the promise is not kept any more.
const CHECKS_MISSED: u32 = 2;

/// What one side knows about a takeover in its present session.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) struct Promise {
    /// The last proof, or the beginning of the session.
    proven_at: Option<Duration>,
    is_proven: bool,
    trouble: Option<String>,
    reported: Option<Result<(), String>>,
}

impl Promise {
    /// A session begins: nothing is proven yet.
    pub(crate) fn begin(&mut self, now: Duration) {
        *self = Self {
            proven_at: Some(now),
            ..Self::default()
        };
    }

    /// The session is over.
    pub(crate) fn end(&mut self) {
        *self = Self::default();
    }

    /// It was true at this time.
    pub(crate) fn prove(&mut self, at: Duration) {
        if let Some(proven_at) = &mut self.proven_at {
            // The beginning of the session was no proof.
            *proven_at = if self.is_proven {
                at.max(*proven_at)
            } else {
                at
            };
            self.is_proven = true;
            self.trouble = None;
        }
    }

    pub(crate) fn fail(&mut self, why: String) {
        if self.proven_at.is_some() {
            self.trouble = Some(why);
        }
    }

    /// When the last proof is too old.
    pub(crate) fn expires_at(&self, policy: &Policy) -> Option<Duration> {
        let proven_at = self.proven_at.filter(|_| self.trouble.is_none())?;
        Some(proven_at + policy.arbiter_check * CHECKS_MISSED)
    }

    pub(crate) fn expire(&mut self) {
        self.fail("the arbiter does not answer".into());
    }

    /// Whether there was a proof in this session.
    pub(crate) fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Whether a takeover would be granted now.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_proven && self.trouble.is_none()
    }

    /// What is to be reported, if it has changed. That nothing is proven yet is no news.
    pub(crate) fn news(&mut self) -> Option<Result<(), String>> {
        let now = match &self.trouble {
            Some(why) => Err(why.clone()),
            None if self.is_proven => Ok(()),
            None => return None,
        };
        (self.reported.as_ref() != Some(&now)).then(|| {
            self.reported = Some(now.clone());
            now
        })
    }

    /// For the model. Without `keeps`, trouble is forgotten too; it is only reported.
    #[cfg(test)]
    pub(crate) fn forget_time(&mut self, now: Duration, keeps: bool) {
        let Self {
            proven_at,
            is_proven: _,
            trouble,
            reported,
        } = self;
        if let Some(at) = proven_at {
            *at = now;
        }
        if let Some(why) = trouble {
            why.clear();
        }
        if let Some(Err(why)) = reported {
            why.clear();
        }
        if !keeps {
            (*trouble, *reported) = (None, None);
        }
    }

    /// For the model: the last proof becomes as old as that.
    #[cfg(test)]
    pub(crate) fn age(&mut self, by: Duration) {
        if let Some(at) = &mut self.proven_at {
            *at -= by;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_counts_from_the_last_proof_and_not_from_the_beginning_of_the_session() {
        let (policy, ms) = (Policy::default(), Duration::from_millis);
        let expires = |promise: &Promise| promise.expires_at(&policy);
        let after = |at| Some(at + policy.arbiter_check * CHECKS_MISSED);
        let mut promise = Promise::default();
        promise.begin(ms(100));
        assert_eq!(expires(&promise), after(ms(100)));
        // What was seen before the session's first answer arrived.
        promise.prove(ms(60));
        assert_eq!(expires(&promise), after(ms(60)));
        promise.prove(ms(50));
        assert_eq!(expires(&promise), after(ms(60)), "an answer that is late");
        promise.prove(ms(120));
        assert_eq!(expires(&promise), after(ms(120)));
    }

    #[test]
    fn nothing_is_reported_before_there_is_a_proof_and_then_each_change_once() {
        let mut promise = Promise::default();
        promise.begin(Duration::ZERO);
        assert_eq!(promise.news(), None);
        promise.prove(Duration::ZERO);
        assert_eq!(promise.news(), Some(Ok(())));
        assert_eq!(promise.news(), None);
        promise.expire();
        assert!(matches!(promise.news(), Some(Err(_))));
        assert_eq!(promise.news(), None);
    }
}
