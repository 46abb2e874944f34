//! tonic's own refusal of a request, in our words: not a defect of the daemon.

use crate::fault::{Fault, Kind};
use http::Response;
use tonic::{Code, Status, body::Body};

/// What tonic says of bytes that are no message.
const MALFORMED: &str = "failed to decode Protobuf message";

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
