//! Limits on the real kernel, in a network namespace of its own, with tc(8) as witness.

use super::*;
use crate::kernel::{
    Action, BridgeProfile, Kernel as _, LinuxKernel, PortFlags, Scope, TapSpec, netns::block_on_in_own_netns,
};
use serde_json::Value;
use std::process::Command;

fn rate(bits_per_second: u64, burst_bytes: u32) -> Rate {
    Rate { bits_per_second, burst_bytes }
}

fn link(text: &str) -> IfName {
    text.parse().unwrap()
}

/// Runs tc; what it printed, as JSON.
fn tc(arguments: &str) -> Value {
    let output = Command::new("tc").args(arguments.split(' ')).output().expect("tc");
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn tap(rate: Option<Rate>, ifb: Option<IfName>) -> Action {
    Action::CreateTap(TapSpec {
        name: link("kvp-a"),
        bridge: link("kvb-lan"),
        owner: 1000,
        mtu: 1500,
        mac: "52:54:00:00:00:0a".parse().unwrap(),
        alias: "kvmctl:x:y".to_owned(),
        flags: PortFlags {
            learning: false,
            flood: false,
            bpdu_guard: true,
            root_block: true,
            isolated: false,
            reserved_groups: 0,
            hairpin: false,
        },
        rate,
        ifb,
    })
}

/// A kernel with a bridge.
async fn kernel() -> LinuxKernel {
    let kernel = LinuxKernel::new().unwrap();
    let bridge = Action::CreateBridge {
        name: link("kvb-lan"),
        mac: "52:54:00:00:00:01".parse().unwrap(),
        mtu: 1500,
        alias: "kvmctl:x:z".to_owned(),
        profile: BridgeProfile::Silent,
    };
    kernel.apply(&bridge).await.unwrap();
    kernel
}

/// Tap and ifb, which both ways of looking have to show alike.
async fn look(kernel: &LinuxKernel) -> (Link, Option<Link>) {
    let names = ["kvb-lan", "kvp-a", "kvi-a"].map(link);
    let some = kernel.observe(&Scope::Port(names.to_vec())).await.unwrap().links;
    let all = kernel.observe(&Scope::All).await.unwrap().links;
    for name in [link("kvp-a"), link("kvi-a")] {
        let shaped = |link: &Link| (link.kind.clone(), link.up, link.bucket, link.redirect);
        assert_eq!(some.get(&name).map(shaped), all.get(&name).map(shaped));
    }
    (some[&link("kvp-a")].clone(), some.get(&link("kvi-a")).cloned())
}

#[test]
fn both_directions_are_limited_changed_and_freed() {
    block_on_in_own_netns(async {
        let kernel = kernel().await;
        let (slow, fast) = (rate(8_000_000, 20_000), rate(100_000_000, 125_000));
        let name = link("kvi-a");
        let ifb = Action::CreateIfb { name: name.clone(), alias: "kvmctl:x:y".to_owned(), rate: slow };
        for action in [&ifb, &tap(Some(fast), Some(name.clone()))] {
            kernel.apply(action).await.unwrap();
        }
        let (tap, ifb) = look(&kernel).await;
        let ifb = ifb.unwrap();
        assert!(tap.bucket.unwrap().carries(fast) && !tap.bucket.unwrap().carries(slow));
        assert!(ifb.bucket.unwrap().carries(slow) && ifb.up && ifb.kind == LinkKind::Ifb);
        assert_eq!((tap.redirect, ifb.redirect), (Some(ifb.index), None));
        let witness = &tc("-j qdisc show dev kvi-a")[0];
        assert_eq!((&witness["kind"], &witness["handle"]), (&"tbf".into(), &"6b76:".into()));
        assert_eq!(
            (&witness["options"]["rate"], &witness["options"]["burst"]),
            (&1_000_000.into(), &20_000.into())
        );
        let filter = tc("-j filter show dev kvp-a ingress");
        assert!(filter.to_string().contains(r#""to_dev":"kvi-a""#), "{filter}");

        kernel.apply(&Action::SetRate(name.clone(), fast)).await.unwrap();
        assert!(look(&kernel).await.1.unwrap().bucket.unwrap().carries(fast));
        // Twice is no error, and leads no frame through it twice.
        let again = Action::Redirect { tap: link("kvp-a"), ifb: name.clone() };
        kernel.apply(&again).await.unwrap();
        let filters = tc("-j filter show dev kvp-a ingress").to_string();
        assert_eq!(filters.matches("to_dev").count(), 1, "{filters}");

        for action in [
            Action::ClearRate(link("kvp-a")),
            Action::Unredirect(link("kvp-a")),
            Action::DeleteLink(name.clone()),
        ] {
            kernel.apply(&action).await.unwrap();
            if !matches!(action, Action::DeleteLink(_)) {
                kernel.apply(&action).await.unwrap();
            }
        }
        let (tap, ifb) = look(&kernel).await;
        assert_eq!((tap.bucket, tap.redirect, ifb), (None, None, None));
        let left = tc("-j qdisc show dev kvp-a").to_string();
        assert!(!left.contains("tbf") && !left.contains("ingress"), "{left}");
    });
}

#[test]
fn any_rate_reads_back_as_it_was_set() {
    block_on_in_own_netns(async {
        let kernel = kernel().await;
        kernel.apply(&tap(None, None)).await.unwrap();
        let mut before = rate(1, 1);
        for bits in [8_000, 8_007, 1_000_000, 999_999_937, 34_359_738_360, 34_359_738_368, 1_000_000_000_000]
        {
            for burst in [1_514, 15_140, 1 << 20, u32::MAX] {
                let now = rate(bits, burst);
                kernel.apply(&Action::SetRate(link("kvp-a"), now)).await.unwrap();
                let bucket = look(&kernel).await.0.bucket.unwrap();
                assert!(bucket.carries(now), "{now:?}: {bucket:?} is not {:?}", Bucket::of(now));
                assert!(!bucket.carries(before), "{now:?}: {bucket:?} is {before:?}");
                assert_eq!(tc("-j qdisc show dev kvp-a")[0]["options"]["rate"], bits / 8);
                before = now;
            }
        }
    });
}

#[test]
fn what_others_put_there_stays() {
    block_on_in_own_netns(async {
        let kernel = kernel().await;
        let name = link("kvi-a");
        let ifb = Action::CreateIfb { name: name.clone(), alias: String::new(), rate: rate(8_000, 2_000) };
        for action in [&ifb, &tap(None, Some(name))] {
            kernel.apply(action).await.unwrap();
        }
        tc("qdisc replace dev kvp-a root handle 7: tbf rate 1mbit burst 10k limit 10k");
        tc("filter add dev kvp-a ingress pref 7 protocol all u32 match u32 0 0 classid 1:1");
        for action in [Action::ClearRate(link("kvp-a")), Action::Unredirect(link("kvp-a"))] {
            kernel.apply(&action).await.unwrap();
        }
        let (tap, _) = look(&kernel).await;
        assert_eq!((tap.bucket, tap.redirect), (None, None), "somebody else's is not taken for ours");
        let left = tc("-j qdisc show dev kvp-a").to_string();
        assert!(left.contains(r#""handle":"7:""#) && left.contains("ingress"), "{left}");
        assert!(tc("-j filter show dev kvp-a ingress").to_string().contains("\"pref\":7"));
        // An ifb that went away leaves a redirect to nowhere, which shows.
        let ifb = Action::CreateIfb { name: link("kvi-b"), alias: String::new(), rate: rate(8_000, 2_000) };
        kernel.apply(&ifb).await.unwrap();
        kernel.apply(&Action::Redirect { tap: link("kvp-a"), ifb: link("kvi-b") }).await.unwrap();
        kernel.apply(&Action::DeleteLink(link("kvi-b"))).await.unwrap();
        assert_eq!(look(&kernel).await.0.redirect, Some(0));
    });
}

#[test]
fn what_waits_is_bounded_and_takes_a_whole_frame() {
    let bucket = |bits, burst| Bucket::of(rate(bits, burst));
    // 50 ms of the rate and the burst.
    assert_eq!(bucket(8_000_000, 20_000), Bucket { rate: 1_000_000, limit: 70_000, buffer: 312_500 });
    assert_eq!(bucket(8_000, 15_140).limit, 15_190);
    assert_eq!(bucket(1_000_000_000_000, u32::MAX).limit, (16 << 20) + (128 << 10));
}
