//! The guest's display by VNC. vmd binds the socket, since QEMU has neither a network nor a folder to bind one in.

use super::{Context, folder_fault};
use crate::{
    model::{Record, VncListen},
    qemu::{args, qmp::Qmp},
};
use serde_json::{Value, json};
use shared::fault::{Fault, Kind};
use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
};

/// Ports of displays 0 to 99.
const PORTS: std::ops::RangeInclusive<u16> = 5900..=5999;
/// The descriptor's name between the two commands.
const NAME: &str = "vnc";

/// Binds the display's socket, if there is to be one.
///
/// # Errors
/// FAILED_PRECONDITION if the run folder cannot be used, RESOURCE_EXHAUSTED if no port is free.
pub(super) fn listen<P>(context: &Context<P>, record: &Record) -> Result<Option<OwnedFd>, Fault> {
    let folder = context.run_folder(&record.name);
    match record.spec.vnc {
        None => Ok(None),
        Some(VncListen::Unix) => {
            let listener = UnixListener::bind(folder.join(args::VNC_SOCKET));
            listener.map(|listener| Some(listener.into())).map_err(|e| folder_fault(&folder, &e))
        }
        Some(VncListen::Tcp) => tcp().map(|listener| Some(listener.into())).map_err(|error| {
            Fault::new(
                Kind::ResourceExhausted,
                "VNC_PORT",
                format!("no port of 127.0.0.1 from {} to {} can be used for VNC", PORTS.start(), PORTS.end()),
            )
            .cause(&error)
            .hint("let the display listen on a Unix socket, `--vnc unix`")
        }),
    }
}

fn tcp() -> io::Result<TcpListener> {
    let mut last = None;
    for port in PORTS {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// Hands the socket to QEMU.
///
/// # Errors
/// FAILED_PRECONDITION if QEMU is too old for that.
pub(super) async fn give(qmp: &Qmp, listener: OwnedFd) -> Result<(), Fault> {
    let give = async {
        qmp.give(NAME, listener).await?;
        let addresses = json!([{"type": "fd", "str": NAME}]);
        qmp.execute("display-update", json!({"type": "vnc", "addresses": addresses})).await
    };
    give.await.map(drop).map_err(|fault| {
        fault
            .context("QEMU did not take the socket for VNC")
            .hint("VNC needs QEMU 7.1 or later; without it, leave `--vnc` away")
    })
}

/// Where VNC is served; empty if it is not.
///
/// # Errors
/// As `Qmp::execute`.
pub(super) async fn address(record: &Record, folder: &Path, qmp: &Qmp) -> Result<String, Fault> {
    match record.spec.vnc {
        None => Ok(String::new()),
        Some(VncListen::Unix) => Ok(format!("unix:{}", folder.join(args::VNC_SOCKET).display())),
        Some(VncListen::Tcp) => {
            let answer = qmp.execute("query-vnc", Value::Null).await?;
            let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
            Ok(format!("{}:{}", text("host"), text("service")))
        }
    }
}
