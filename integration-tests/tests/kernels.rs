//! netd with the kernels and the nft of Debian's releases: in machines without disk.

use integration_tests::{
    host::{program_path, workspace},
    netns,
};
use std::{fs, path::Path, process::Command};
use tempfile::TempDir;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("folder")).expect("folder");
    fs::copy(from, to).unwrap_or_else(|e| panic!("copy {}: {e}", from.display()));
}

/// This host's nft, with its libraries, in place of the machine's.
fn own_nft(root: &Path) {
    let nft = Path::new("/usr/sbin/nft");
    copy(nft, &root.join("own/nft"));
    let libraries = netns::run(Command::new("ldd").arg(nft));
    for path in String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
        let name = Path::new(path).file_name().expect("name");
        copy(Path::new(path), &root.join("own").join(name));
    }
    let wrapper = root.join("usr/sbin/nft");
    let loader = "exec /own/ld-linux-x86-64.so.2 --library-path /own /own/nft \"$@\"";
    fs::write(&wrapper, format!("#!/bin/sh\n{loader}\n")).expect("nft");
    netns::run(Command::new("chmod").arg("+x").arg(&wrapper));
}

/// What `guest/kernel-test` prints with a release's kernel, and its nft or this host's.
fn boot(suite: &str, with_own_nft: bool) -> String {
    let base = workspace().join("target/guest").join(suite);
    let guest = workspace().join("integration-tests/guest");
    // A download, and later the machine, take longer than `netns::run` waits.
    let built = Command::new(guest.join("kernel.sh")).arg(&base).arg(suite).output().expect("kernel.sh");
    assert!(built.status.success(), "{built:?}");
    let dir = TempDir::new().expect("folder");
    let root = dir.path().join("root");
    copy(&guest.join("kernel-test"), &root.join("test"));
    for program in ["netd", "kvmctl"] {
        let to = root.join("usr/sbin").join(program);
        copy(&program_path(program), &to);
        netns::run(Command::new("strip").arg(&to));
    }
    if with_own_nft {
        own_nft(&root);
    }
    let initrd = dir.path().join("initrd.img");
    let pack = "cp \"$1\" \"$2\"; cd \"$3\"; find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 >>\"$2\"";
    let mut pack_command = Command::new("sh");
    pack_command.args(["-euc", pack, "sh"]).arg(base.join("initrd.img")).arg(&initrd).arg(&root);
    netns::run(&mut pack_command);
    let mut qemu = Command::new("timeout");
    qemu.args(["1800", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "768", "-nographic"])
        .args(["-no-reboot", "-nic", "none", "-append", "console=ttyS0 quiet loglevel=0 panic=-1"])
        .arg("-kernel")
        .arg(base.join("vmlinuz"))
        .arg("-initrd")
        .arg(&initrd)
        .stdin(std::process::Stdio::null());
    let output = qemu.output().expect("timeout");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

/// What a section has.
fn section<'a>(text: &'a str, name: &str) -> &'a str {
    let begin = format!("== {name}\n");
    let at = text.find(&begin).unwrap_or_else(|| panic!("no section {name}: {text}")) + begin.len();
    text[at..].split("\n== ").next().unwrap_or_default()
}

#[test]
fn rules_load_and_read_back_with_each_debian_release() {
    if !integration_tests::soak() {
        println!("SKIPPED: it downloads two kernels and boots them; `make soak` does it");
        return;
    }
    for suite in ["bookworm", "trixie"] {
        let text = boot(suite, false);
        println!("{suite}: {}", section(&text, "versions").replace('\n', ", "));
        assert!(!text.contains("FAILED"), "{suite}: {text}");
        for (name, member) in [
            ("ports", ". 6 . 10.0.0.0/8 . 22"),
            ("protocols", ". 17 . fd00::/8"),
            ("peers", ". 1-255"),
            ("forward", ". 2222 : "),
            ("repaired", "kvp-"),
        ] {
            let found = section(&text, name);
            assert!(found.contains(member), "{suite}: no {member} in {name}: {found}");
        }
        // A table made anew has another handle: the rules were known as they were, and what was missing was put back.
        let before = section(&text, "before");
        assert!(before.contains("table bridge kvmctl { # handle"), "{suite}: {text}");
        assert_eq!(before, section(&text, "after"), "{suite}: {text}");
        assert!(!section(&text, "removed").contains("10.0.0.0/8"), "{suite}: {text}");
    }
}

/// nft before 1.1.0 converts the byte order of single bytes, which kernels refuse that have the stricter nft_byteorder.
#[test]
fn a_kernel_that_refuses_this_nft_is_told_so() {
    if !integration_tests::soak() {
        println!("SKIPPED: it downloads a kernel and boots it; `make soak` does it");
        return;
    }
    let text = boot("trixie", true);
    println!("trixie's kernel: {}", section(&text, "versions").replace('\n', ", "));
    if !section(&text, "versions").contains("nftables v1.0.") {
        println!("SKIPPED: this host's nft is not before 1.1.0");
        return;
    }
    let create = section(&text, "create");
    assert!(create.contains("Operation not supported"), "{text}");
    assert!(create.contains("install nftables 1.1.0 or newer"), "{text}");
}
