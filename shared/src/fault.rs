//! The one error type that crosses a program's edge.

use std::{collections::BTreeMap, error::Error, fmt, time::Duration};

/// What a caller can do about a failure. Each maps to one gRPC code and back (`status.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request can never succeed as written.
    InvalidArgument,
    /// There is no such object.
    NotFound,
    /// The name, address or number is taken.
    AlreadyExists,
    /// Something else has to change first.
    FailedPrecondition,
    /// This caller may not do that.
    PermissionDenied,
    /// A quota or a disk is full.
    ResourceExhausted,
    /// Lost a race; trying again helps.
    Aborted,
    /// The other side is not there; trying again later helps.
    Unavailable,
    /// It took longer than the caller allowed.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// A defect or an unexpected answer of the kernel, nft or QEMU.
    Internal,
}

/// A failure: what failed, on which object, why (`causes`) and what to do next (`hints`).
///
/// `Display` prints the outermost message only; `causes` has the rest, once, in order.
#[derive(Clone, Debug)]
pub struct Fault(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: Kind,
    reason: String,
    message: String,
    causes: Vec<String>,
    hints: Vec<String>,
    metadata: BTreeMap<String, String>,
    retry: Option<Duration>,
}

impl Fault {
    /// A failure with a machine-readable `reason` in UPPER_SNAKE_CASE and a message for people.
    #[must_use]
    pub fn new(kind: Kind, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            reason: reason.into(),
            message: message.into(),
            causes: Vec::new(),
            hints: Vec::new(),
            metadata: BTreeMap::new(),
            retry: None,
        }))
    }

    /// Shorthand for what should never happen.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, "INTERNAL", message)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        if !self.0.hints.contains(&hint) {
            self.0.hints.push(hint);
        }
        self
    }

    /// Adds a fact for programs, such as the name of the object in the way.
    #[must_use]
    pub fn meta(mut self, key: impl Into<String>, value: impl fmt::Display) -> Self {
        self.0.metadata.insert(key.into(), value.to_string());
        self
    }

    /// Says when it is of use to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.0.retry = Some(wait);
        self
    }

    /// When it is of use to try again; `None`: nobody knows.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        self.0.retry
    }

    /// Adds the error that led to this one, and its own chain.
    #[must_use]
    pub fn cause(mut self, error: &dyn Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.0.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Puts this failure under a message that says what was being done. Kind, reason, hints and facts stay.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        let inner = std::mem::replace(&mut self.0.message, message.into());
        self.0.causes.insert(0, inner);
        self
    }

    /// The same failure as another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Rebuilds a failure that came over the wire.
    #[must_use]
    pub(crate) fn with_causes(mut self, causes: Vec<String>) -> Self {
        self.0.causes = causes;
        self
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// UPPER_SNAKE_CASE, for programs.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// What led to it, outermost first.
    #[must_use]
    pub fn causes(&self) -> &[String] {
        &self.0.causes
    }

    /// What to do next.
    #[must_use]
    pub fn hints(&self) -> &[String] {
        &self.0.hints
    }

    /// Facts for programs.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// Message and causes in one line, for a log or a status field.
    #[must_use]
    pub fn chain(&self) -> String {
        std::iter::once(&self.0.message)
            .chain(&self.0.causes)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(": ")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Error for Fault {}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn context_goes_outside_and_the_cause_is_printed_once() {
        let io = std::io::Error::from_raw_os_error(2);
        let fault = Fault::new(Kind::NotFound, "NO_TUN", "cannot open the tap device")
            .cause(&io)
            .context("cannot create port `web-0`");
        assert_eq!(fault.to_string(), "cannot create port `web-0`");
        assert_eq!(
            fault.chain(),
            "cannot create port `web-0`: cannot open the tap device: No such file or directory (os error 2)"
        );
    }
}
