//! A guest's own programs: DHCP clients and questions to DNS, none of them ours.

use crate::{guest::Guest, host::workspace, netns, wait};
use std::{collections::BTreeMap, process::Child};

/// What a DHCP server told a guest, by the names that udhcpc gives to it.
pub type Told = BTreeMap<String, String>;

fn script() -> String {
    workspace().join("integration-tests/src/dhcp-client.sh").display().to_string()
}

fn told(output: &str) -> Told {
    let pairs = output.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

impl Guest {
    /// Asks once for an IPv4 address and takes it; `None` if nobody answers three times in three seconds.
    pub fn dhcp4(&self, options: &[&str]) -> Option<Told> {
        let mut command = self.netns.command("busybox");
        command
            .args(["udhcpc", "-f", "-q", "-n", "-t", "3", "-T", "1", "-i", "eth0", "-s", &script()])
            .args(["-O", "mtu", "-O", "search"])
            .args(options);
        let output = netns::output(&mut command);
        output.status.success().then(|| told(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Asks for an IPv6 address and takes it, as another client each time: with a new DUID.
    ///
    /// # Panics
    /// If nobody answers.
    #[must_use]
    pub fn dhcp6(&self) -> Told {
        self.has_link_local();
        let dir = tempfile::tempdir().expect("folder");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut command = self.netns.command("dhclient");
        command.args([
            "-6",
            "-1",
            "-d",
            "-sf",
            &script(),
            "-lf",
            &path("leases"),
            "-pf",
            &path("pid"),
            "eth0",
        ]);
        let log = std::fs::File::create(path("log")).expect("log");
        let mut client = command.stdout(log).stderr(std::process::Stdio::null()).spawn().expect("dhclient");
        let found = wait::until("an address by DHCPv6", || {
            let told = told(&std::fs::read_to_string(path("log")).unwrap_or_default());
            told.contains_key("search").then_some(told)
        });
        let _ = client.kill();
        let _ = client.wait();
        found
    }

    /// Waits until the guest can speak IPv6 on its link.
    fn has_link_local(&self) {
        wait::until("a link-local address", || {
            let text = self.netns.sh("ip -6 address show dev eth0 scope link");
            (text.contains("fe80:") && !text.contains("tentative")).then_some(())
        });
    }

    /// Waits until eth0 has this address in use.
    pub fn has_address(&self, address: &str) {
        wait::until(&format!("{address} on eth0"), || {
            let text = self.netns.sh("ip address show dev eth0");
            let line = text.lines().find(|line| line.contains(&format!(" {address}/")))?;
            (!line.contains("tentative")).then_some(())
        });
    }

    /// The answers of a DNS server, sorted; empty if there are none.
    #[must_use]
    pub fn dig(&self, server: &str, question: &str) -> Vec<String> {
        dig(&self.netns, server, question)
    }
}

/// The answers of a DNS server to a question in dig's words, sorted; empty if there are none, or no server.
#[must_use]
pub fn dig(netns: &netns::Netns, server: &str, question: &str) -> Vec<String> {
    let mut command = netns.command("dig");
    command.args(["+short", "+time=1", "+tries=1", &format!("@{server}")]).args(question.split(' '));
    let output = netns::output(&mut command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // dig's own remarks are comments.
    let mut answers: Vec<_> = text.lines().filter(|line| !line.starts_with(';')).map(str::to_owned).collect();
    answers.sort();
    answers
}

/// A DNS server on the LAN.
#[derive(Debug)]
pub struct Resolver(Child);

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A DNS server on the LAN, where it is 10.99.0.1, that knows `outside.test`.
///
/// # Panics
/// If it does not come up.
#[must_use]
pub fn resolver(lan: &netns::Netns) -> Resolver {
    let server = Resolver(lan.spawn(
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-hosts",
            "--no-resolv",
            "--pid-file",
            "--user=root",
            "--address=/outside.test/203.0.113.9",
            "--address=/outside.test/2001:db8:9::9",
        ],
    ));
    wait::until("the LAN's resolver", || {
        (dig(lan, "10.99.0.1", "outside.test") == ["203.0.113.9"]).then_some(())
    });
    server
}
