//! What clients are told, in our words: of a request that tonic refuses, which is no defect of the daemon, and of limits.

use crate::fault::{Fault, Kind};
use http::Response;
use tonic::{Code, Status, body::Body};

/// What tonic says of bytes that are no message.
const MALFORMED: &str = "failed to decode Protobuf message";

/// Whose limits hold for all uids together that users have besides their own: no user's number.
pub(super) const SUBORDINATES: u32 = u32::MAX - 1;

/// Who has something, as the begin of a sentence.
pub(super) fn have(account: u32) -> String {
    if account == SUBORDINATES {
        "the subordinate uids of /etc/subuid together have".to_owned()
    } else {
        format!("uid {account} has")
    }
}

/// The response, or a clearer one.
pub(super) fn clearer(response: Response<Body>) -> Response<Body> {
    // An answer that is nothing but a refusal has its status among the headers.
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    if status.code() != Code::Internal || !status.message().starts_with(MALFORMED) {
        return response;
    }
    let fault = Fault::new(Kind::InvalidArgument, "MALFORMED", "the request is no message of this call")
        .cause(&std::io::Error::other(status.message().to_owned()))
        .hint("the client was built for another API: compare `kvmctl --version` with `kvmctl host show`");
    Status::from(fault).into_http()
}
