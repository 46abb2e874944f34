//! Guests in trouble, with real QEMU: a full disk, an image that another program has, a loop of resets.

use integration_tests::{
    host::{TestHost, VMD_UID},
    machine::CMDLINE,
    netns, wait,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _, chown},
    process::{Command, Stdio},
};

const MIB: u64 = 1 << 20;

/// A boot sector that writes 64 sectors after 64 sectors through the firmware, for ever.
///
/// Clear AX, DS, SS; SP = 7C00. Then: AX = 4300 (extended write), SI = the packet, DL = 80 (the first disk), INT 13, add
/// 64 to the packet's sector, again. The packet at offset 31: size 16, 64 sectors, from 0000:8000, to sector 1.
const WRITER: [u8; 47] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xb4, 0x43, 0xb0, 0x00, 0xbe, 0x1f, 0x7c, 0xb2,
    0x80, 0xcd, 0x13, 0x66, 0x81, 0x06, 0x27, 0x7c, 0x40, 0x00, 0x00, 0x00, 0xeb, 0xea, 0x10, 0x00, 0x40,
    0x00, 0x00, 0x80, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

fn status(host: &TestHost, name: &str) -> Value {
    host.ok_json(&format!("vm show {name}"))["status"].clone()
}

/// A sparse image of 64 MiB that vmd may write to, with the boot sector.
fn image(path: &str) {
    let file = fs::File::create(path).expect("image");
    file.set_len(64 * MIB).expect("size");
    file.write_all_at(&WRITER, 0).expect("boot sector");
    file.write_all_at(&[0x55, 0xaa], 510).expect("boot sector");
    chown(path, Some(VMD_UID), Some(VMD_UID)).expect("chown");
}

/// A small file system of memory; gone when dropped.
struct Pool(String);

impl Pool {
    fn of(path: String, size: &str) -> Self {
        fs::create_dir(&path).expect("folder");
        let pool = Self(path);
        pool.mount(&format!("size={size}"));
        pool
    }

    fn mount(&self, options: &str) {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", &self.0]).status();
        assert!(status.expect("mount").success());
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &self.0]).status();
    }
}

#[test]
fn a_machine_whose_disk_is_full_is_paused_and_goes_on_when_there_is_room() {
    let mut host = TestHost::new();
    let pool = Pool::of(host.path("pool"), "4M");
    host.add_vmd();
    let disk = host.path("pool/disk.img");
    image(&disk);
    host.ok(&format!("vm run web --memory 64M --disk {disk},format=raw"));
    wait::until("it to be paused", || (status(&host, "web")["state"] == "paused").then_some(()));
    let told = wait::until("the reason", || {
        let told = status(&host, "web")["warnings"].to_string();
        told.contains("write failed").then_some(told)
    });
    assert!(told.contains("No space left") && told.contains("stop"), "{told}");
    let full = fs::metadata(&disk).expect("disk").blocks() * 512;
    println!("paused with {full} bytes of the disk written");
    pool.mount("remount,size=128M");
    host.ok("vm resume web");
    wait::until("more to be written", || {
        (fs::metadata(&disk).expect("disk").blocks() * 512 > full + MIB).then_some(())
    });
    assert_eq!(status(&host, "web")["state"], "running");
    host.ok("vm stop web --force");
}

#[test]
fn an_image_that_another_program_has_locked_is_refused_and_can_be_had_later() {
    let host = TestHost::with_vmd();
    let disk = host.path("disk.img");
    image(&disk);
    let blockdev =
        format!("{{\"driver\":\"file\",\"node-name\":\"d\",\"filename\":\"{disk}\",\"locking\":\"on\"}}");
    let mut other = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "64M", "-S"])
        .args(["-blockdev", &blockdev, "-device", "virtio-blk-pci,drive=d"])
        .stdin(Stdio::null())
        .spawn()
        .expect("QEMU");
    wait::until("the lock", || {
        let locks = netns::output(Command::new("cat").arg("/proc/locks"));
        let inode = format!(":{} ", fs::metadata(&disk).expect("disk").ino());
        String::from_utf8_lossy(&locks.stdout).contains(&inode).then_some(())
    });
    host.ok(&format!("vm create web --memory 64M --disk {disk},format=raw"));
    let refused = host.kvmctl(&["vm", "start", "web"]);
    let _ = other.kill();
    let _ = other.wait();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("lock") && refused.stderr.contains("another machine or program"),
        "{}",
        refused.stderr
    );
    host.ok("vm start web");
    host.ok("vm stop web --force");
}

#[test]
fn a_guest_that_resets_itself_again_and_again_runs_and_is_shown() {
    let host = TestHost::with_vmd();
    // Without a root file system the kernel panics, and resets.
    let outcome = host.kvmctl(&[
        "vm",
        "run",
        "web",
        "--memory",
        "256M",
        "--kernel",
        &host.path("vmlinuz"),
        "--cmdline",
        CMDLINE,
    ]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let told = wait::until("two resets", || {
        let told = status(&host, "web")["warnings"].to_string();
        told.contains("reset itself 2 times").then_some(told)
    });
    println!("{told}");
    assert_eq!(status(&host, "web")["state"], "running");
    host.ok("vm stop web --force");
}
