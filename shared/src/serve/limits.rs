//! What a daemon lets its clients have. The values are here and nowhere else; README.md shows them.

use crate::slots::Share;
use rustix::process::{Resource, getrlimit};
use std::time::Duration;

/// Calls that may take longer than `Limits::call`, because the client says how long.
pub const LONG_CALLS: &[(&str, Duration)] = &[
    // A guest has up to an hour to shut down.
    ("/vmd.v1.VmService/StopVm", Duration::from_secs(3600 + 60)),
    // Packets are watched for up to a minute.
    ("/netd.v1.DiagnoseService/Explain", Duration::from_secs(180)),
];

/// All limits of one server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections. Each viewer of a console is one: 200 machines and 20 operators fit.
    pub connections: Share,
    /// Calls with one answer that are being worked on.
    pub calls: Share,
    /// Streams that are open: watches, consoles, captures.
    pub streams: Share,
    /// Calls and streams of one connection at once; a client waits with more.
    pub streams_per_connection: u32,
    /// How long a client has for HTTP/2's first 24 bytes.
    pub handshake: Duration,
    /// How long a client that gets no connection has to ask for something and hear why.
    pub refusal: Duration,
    /// Clients that hear why at the same time; more are cut off.
    pub refusals: usize,
    /// A connection on which nothing was heard for so long is asked whether its client lives.
    pub keepalive: Duration,
    /// How long the client has to answer that.
    pub keepalive_answer: Duration,
    /// Bytes of a message of a client.
    pub message: usize,
    /// Bytes of all headers of a request.
    pub headers: u32,
    /// Streams that a client has reset before they were taken up.
    pub resets: usize,
    /// How long a call with one answer may take; `LONG_CALLS` are longer.
    pub call: Duration,
    /// How long a client may leave a piece of a stream unread; then it loses the connection.
    pub stalled: Duration,
    /// How long calls may go on after the daemon was told to end.
    pub ending: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Share { all: 768, each: 256, reserve: 1280 },
            calls: Share { all: 256, each: 128, reserve: 128 },
            streams: Share { all: 1024, each: 256, reserve: 256 },
            streams_per_connection: 64,
            handshake: Duration::from_secs(5),
            refusal: Duration::from_secs(2),
            refusals: 64,
            keepalive: Duration::from_secs(20),
            keepalive_answer: Duration::from_secs(10),
            message: 1 << 20,
            headers: 64 << 10,
            resets: 20,
            call: Duration::from_secs(120),
            // Somebody may be reading a log, page by page.
            stalled: Duration::from_secs(600),
            ending: Duration::from_secs(2),
        }
    }
}

impl Limits {
    /// Fewer connections where this process may open few files: clients get half of the descriptors at most.
    #[must_use]
    pub fn within_descriptors(self) -> Self {
        match getrlimit(Resource::Nofile).current {
            Some(descriptors) => self.scaled(usize::try_from(descriptors).unwrap_or(usize::MAX) / 2),
            None => self,
        }
    }

    fn scaled(mut self, most: usize) -> Self {
        let Share { all, each, reserve } = self.connections;
        let wanted = all + reserve;
        if wanted > most {
            let part = |count: usize| (count * most / wanted).max(1);
            self.connections = Share { all: part(all), each: part(each), reserve: part(reserve) };
        }
        self
    }

    /// How long a client may read nothing at all from its socket, once that is full: as long as it may leave a ping
    /// unanswered.
    pub(super) fn unread(&self) -> Duration {
        self.keepalive + self.keepalive_answer
    }

    /// How long a call of this path may take.
    pub(super) fn call(&self, path: &str) -> Duration {
        LONG_CALLS.iter().find(|(long, _)| *long == path).map_or(self.call, |(_, duration)| *duration)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn few_descriptors_mean_few_connections_and_never_none() {
        let full = Limits::default().connections;
        assert_eq!(Limits::default().scaled(1 << 20).connections, full);
        for most in [512, 100, 1] {
            let Share { all, each, reserve } = Limits::default().scaled(most).connections;
            assert!(all >= 1 && each >= 1 && reserve >= 1 && each <= all);
            assert!(all + reserve <= most.max(2), "{most}: {all} + {reserve}");
        }
    }

    #[test]
    fn a_stop_may_take_as_long_as_a_guest_has() {
        let limits = Limits::default();
        assert!(limits.call("/vmd.v1.VmService/StopVm") > Duration::from_secs(3600));
        assert_eq!(limits.call("/vmd.v1.VmService/GetVm"), limits.call);
    }
}
