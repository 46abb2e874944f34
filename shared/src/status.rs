//! `Fault` as gRPC status, and back: the only place that knows both.
//!
//! Details carry `google.rpc.ErrorInfo` (reason, domain, facts), `DebugInfo` (the cause chain), `Help` (hints) and
//! `RetryInfo` (when to try again).

use crate::fault::{Fault, Kind};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const DOMAIN: &str = "kvmctl";

fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Aborted => Code::Aborted,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::Internal => Code::Internal,
    }
}

fn kind(code: Code) -> Kind {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Kind::InvalidArgument,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::AlreadyExists,
        Code::FailedPrecondition => Kind::FailedPrecondition,
        Code::PermissionDenied | Code::Unauthenticated => Kind::PermissionDenied,
        Code::ResourceExhausted => Kind::ResourceExhausted,
        Code::Aborted => Kind::Aborted,
        Code::Unavailable => Kind::Unavailable,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::Cancelled => Kind::Cancelled,
        Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => Kind::Internal,
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(
            fault.reason(),
            DOMAIN,
            fault.metadata().clone().into_iter().collect::<std::collections::HashMap<_, _>>(),
        );
        if !fault.causes().is_empty() {
            details.set_debug_info(fault.causes().to_vec(), "");
        }
        if let Some(wait) = fault.retry() {
            details.set_retry_info(Some(wait));
        }
        for hint in fault.hints() {
            details.add_help_link(hint, "");
        }
        Status::with_error_details(code(fault.kind()), fault.to_string(), details)
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let reason = info.map_or("", |i| i.reason.as_str());
        let mut fault = Fault::new(kind(status.code()), reason, status.message());
        if let Some(debug) = details.debug_info() {
            fault = fault.with_causes(debug.stack_entries.clone());
        }
        if let Some(wait) = details.retry_info().and_then(|retry| retry.retry_delay) {
            fault = fault.retry_after(wait);
        }
        for link in details.help().map_or(&[][..], |h| &h.links) {
            fault = fault.hint(&link.description);
        }
        for (key, value) in info.iter().flat_map(|i| &i.metadata) {
            fault = fault.meta(key, value);
        }
        fault
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire_with_its_details() {
        for kind in [
            Kind::InvalidArgument,
            Kind::NotFound,
            Kind::AlreadyExists,
            Kind::FailedPrecondition,
            Kind::PermissionDenied,
            Kind::ResourceExhausted,
            Kind::Aborted,
            Kind::Unavailable,
            Kind::DeadlineExceeded,
            Kind::Cancelled,
            Kind::Internal,
        ] {
            let sent = Fault::new(kind, "SUBNET_OVERLAPS", "cannot create network `lan`")
                .cause(&std::io::Error::other("it overlaps"))
                .hint("choose another range")
                .meta("other", "networks/old")
                .retry_after(std::time::Duration::from_millis(250));
            let got = Fault::from(Status::from(sent.clone()));
            assert_eq!(got.kind(), kind);
            assert_eq!(got.reason(), sent.reason());
            assert_eq!(got.chain(), sent.chain());
            assert_eq!(got.hints(), sent.hints());
            assert_eq!(got.metadata(), sent.metadata());
            assert_eq!(got.retry(), sent.retry());
        }
    }
}
