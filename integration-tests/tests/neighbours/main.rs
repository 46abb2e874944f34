//! Real neighbours on the same host: what they break is named exactly, and the named fix works when it is pasted.
//!
//! Each runs in the host's namespace, with its state in the test's folder. What needs a package that is not there is
//! skipped, loudly.

mod docker;
mod firewalld;
mod libvirt;
mod world;

/// Whether a program is there; says so if the test has to be skipped.
fn has(program: &str, package: &str) -> bool {
    let there = std::process::Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        println!("SKIPPED: {program} is missing: apt-get install {package}");
    }
    there
}

#[test]
fn why_says_what_packets_do() {
    let world = world::World::new(world::ALL);
    let wrong = world.disagreements();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
