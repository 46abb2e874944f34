//! `kvmctl port capture`.

use super::PortName;
use crate::parse;
use clap::{Args, ValueHint};
use std::{path::PathBuf, time::Duration};

pub const EXAMPLES: &str = "\
Examples:
  kvmctl port capture lan web-0
  kvmctl port capture lan web-0 -w web.pcapng --duration 30s
  kvmctl port capture lan web-0 arp or udp port 67
  kvmctl port capture lan web-0 -w - | wireshark -k -i -";

/// `kvmctl port capture`.
#[derive(Args, Debug)]
pub struct CapturePort {
    /// Which port.
    #[command(flatten)]
    pub port: PortName,
    /// Where to; - is standard output. Without it: a line for each frame on a terminal, else standard output. An
    /// existing file is overwritten
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub write: Option<PathBuf>,
    /// End after this many frames
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time, 24h at most [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub duration: Option<Duration>,
    /// End before the file is larger, 64G at most [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub size: Option<u64>,
    /// Bytes kept of each frame [default: 262144]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub snaplen: Option<u32>,
    /// Which frames, in the words of tcpdump: `tcp port 80`, for example
    pub filter: Vec<String>,
}
