//! There is no moment without rules while netd replaces them.

use crate::{attacks, scene::Scene};
use integration_tests::{
    netns::Netns,
    wait::{self, PATIENCE},
    wire::same,
};
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Instant,
};

const FRAMES: usize = 100_000;
const REPLACEMENTS: usize = 10;

/// What somebody else does to our rules, so that netd replaces both tables. None of it opens the filter by itself.
const DAMAGE: [&str; 5] = [
    "nft insert rule inet kvmctl kv_input accept",
    "nft add rule bridge kvmctl kv_learn4 counter",
    "nft add chain bridge kvmctl theirs",
    "nft flush chain inet kvmctl kv_forward; nft delete element bridge kvmctl kv_ip4 '{ kvp-b . 10.60.0.12 }'",
    "nft delete element bridge kvmctl kv_mac '{ kvp-c . %MAC }'; nft add set bridge kvmctl theirs '{ type mark; }'",
];

/// Ends the damage, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A number that a new table has not got from an old one.
fn handle(host: &Netns) -> Option<u64> {
    let tables = host.json("nft -j list tables");
    let table = tables["nftables"].as_array()?.iter().map(|object| &object["table"]);
    table.filter(|t| t["family"] == "bridge" && t["name"] == "kvmctl").find_map(|t| t["handle"].as_u64())
}

#[test]
fn while_rules_are_replaced_none_of_100000_attacks_gets_through() {
    let scene = Scene::nat("");
    let mac = scene.port("c")["status"]["mac"].as_str().expect("MAC").to_owned();
    let attacks = attacks::all(&scene);
    let frames: Vec<&[u8]> = attacks.iter().map(|attack| attack.frame.as_slice()).collect();
    let (done, replaced) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begin = Instant::now();
    let (mut sent, mut through) = (0, Vec::new());
    let host = &scene.host.netns;
    thread::scope(|scope| {
        scope.spawn(|| {
            for damage in DAMAGE.iter().cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
                let before = handle(host);
                host.sh(&damage.replace("%MAC", &mac));
                wait::until("other tables", || handle(host).filter(|now| Some(*now) != before));
                replaced.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _end = End(&done);
        let go_on = |sent| sent < FRAMES || replaced.load(Ordering::Relaxed) < REPLACEMENTS;
        while go_on(sent) && through.is_empty() && begin.elapsed() < PATIENCE {
            for frame in scene.send(&frames).into_iter().flatten() {
                let known = attacks.iter().find(|attack| same(&attack.frame, &frame));
                through.push(known.map_or_else(|| format!("{frame:02x?}"), |attack| attack.what.to_owned()));
            }
            sent += frames.len();
        }
    });
    assert!(through.is_empty(), "{} of {sent} get through: {through:#?}", through.len());
    let replaced = replaced.into_inner();
    println!("0 of {sent} frames through in {:?}, the rules replaced {replaced} times", begin.elapsed());
    assert!(
        sent >= FRAMES && replaced >= REPLACEMENTS,
        "{sent} frames, {replaced} replacements in {PATIENCE:?}"
    );
}
