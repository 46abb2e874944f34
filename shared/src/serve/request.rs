//! What a client sends: no message of it is longer than the limit.

use crate::fault::{Fault, Kind};
use http_body::{Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{Status, body::Body, codegen::Bytes};

/// A flag and the length of what follows, before each message.
const PREFIX: usize = 5;

/// The body of a request.
pub(super) struct Measured {
    inner: Body,
    largest: usize,
    prefix: Vec<u8>,
    /// Bytes of the present message that are still to come.
    rest: usize,
}

impl Measured {
    /// A body whose messages have at most `largest` bytes.
    pub fn around(inner: Body, largest: usize) -> Body {
        Body::new(Self { inner, largest, prefix: Vec::with_capacity(PREFIX), rest: 0 })
    }

    /// Reads the lengths that pass by.
    fn measure(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = &bytes[skipped..];
            let taken = (PREFIX - self.prefix.len()).min(bytes.len());
            if self.rest == 0 {
                self.prefix.extend_from_slice(&bytes[..taken]);
                bytes = &bytes[taken..];
            }
            if let [_, a, b, c, d] = self.prefix[..] {
                let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                if length > self.largest {
                    return Err(too_long(length, self.largest));
                }
                self.prefix.clear();
                self.rest = length;
            }
        }
        Ok(())
    }
}

fn too_long(length: usize, largest: usize) -> Fault {
    Fault::new(
        Kind::ResourceExhausted,
        "MESSAGE_TOO_LONG",
        format!("a message of {length} bytes is longer than {largest} bytes, which is the most"),
    )
    .hint("ask for less at once")
    .meta("limit", "message_bytes")
    .meta("value", largest)
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(fault) = self.measure(data)
        {
            return Poll::Ready(Some(Err(fault.into())));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn measured(largest: usize) -> Measured {
        Measured { inner: Body::empty(), largest, prefix: Vec::new(), rest: 0 }
    }

    proptest! {
        #[test]
        fn the_first_message_that_is_too_long_is_found_however_the_bytes_are_cut(
            lengths in proptest::collection::vec(0usize..40, 0..8),
            cuts in proptest::collection::vec(1usize..9, 200),
        ) {
            let bytes: Vec<u8> = lengths
                .iter()
                .flat_map(|length| {
                    let prefix = u32::try_from(*length).unwrap().to_be_bytes();
                    std::iter::once(0).chain(prefix).chain(std::iter::repeat_n(0xff, *length))
                })
                .collect();
            let mut measured = measured(30);
            let (mut rest, mut refused) = (&bytes[..], false);
            for cut in cuts {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                refused |= measured.measure(piece).is_err();
                rest = later;
                if refused {
                    break;
                }
            }
            prop_assert_eq!(refused, lengths.iter().any(|length| *length > 30));
        }
    }
}
