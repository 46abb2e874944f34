//! What /dev/kvm costs: QEMU opens it itself, as a user of its own, and so keeps the groups that let vmd open it.

use super::{Finding, Layer};
use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// The device.
pub const DEVICE: &str = "/dev/kvm";

/// By whom it can be opened for reading and writing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Opener {
    Everybody,
    /// A supplementary group of vmd's; the others that QEMU keeps with it.
    Group(Vec<u32>),
    /// At most vmd's user.
    User,
}

/// Notes in the findings what they come to for a machine with KVM; whether it has to keep vmd's groups.
pub fn note(findings: &mut [Finding]) -> bool {
    let groups = rustix::process::getgroups().unwrap_or_default();
    let groups: Vec<u32> = groups.iter().map(|group| group.as_raw()).collect();
    let opener =
        fs::metadata(Path::new(DEVICE)).map_or(Opener::User, |meta| opener(meta.mode(), meta.gid(), &groups));
    for finding in findings.iter_mut().filter(|finding| finding.layer == Layer::OwnUser && finding.holds) {
        tell(finding, &opener);
    }
    matches!(opener, Opener::Group(_))
}

fn opener(mode: u32, gid: u32, groups: &[u32]) -> Opener {
    if mode & 0o006 == 0o006 {
        Opener::Everybody
    } else if mode & 0o060 == 0o060 && groups.contains(&gid) {
        Opener::Group(groups.iter().copied().filter(|group| *group != gid).collect())
    } else {
        // vmd's primary group is no way either: QEMU has another.
        Opener::User
    }
}

fn tell(finding: &mut Finding, opener: &Opener) {
    match opener {
        Opener::Everybody => {}
        Opener::Group(others) if others.is_empty() => {
            finding.reason = format!("with KVM it is in the group of {DEVICE}, too");
        }
        // setgroups(2) takes all or none without a privilege outside, and QEMU 7.2 takes no descriptor of the device.
        Opener::Group(others) => {
            let others: Vec<String> = others.iter().map(u32::to_string).collect();
            finding.reason = format!(
                "with KVM it keeps all groups of vmd's, not only that of {DEVICE}: {}; where everybody may open {DEVICE}, \
                 it keeps none",
                others.join(", ")
            );
        }
        Opener::User => {
            finding.holds = false;
            finding.reason =
                format!("only vmd's user may open {DEVICE}: let its group do so, and put vmd's user in it");
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn groups_are_kept_for_the_device_and_those_that_are_too_many_are_named() {
        assert_eq!(opener(0o20_666, 108, &[4, 108]), Opener::Everybody);
        assert_eq!(opener(0o20_660, 108, &[4, 108, 60]), Opener::Group(vec![4, 60]));
        assert_eq!(opener(0o20_660, 108, &[108]), Opener::Group(Vec::new()));
        assert_eq!(opener(0o20_660, 108, &[4]), Opener::User);
        assert_eq!(opener(0o20_600, 108, &[108]), Opener::User);
        let told = |opener: &Opener| {
            let mut finding = Finding::of(Layer::OwnUser, Ok(()));
            tell(&mut finding, opener);
            (finding.holds, finding.reason)
        };
        assert_eq!(told(&Opener::Everybody), (true, String::new()));
        let (holds, reason) = told(&Opener::Group(vec![4, 60]));
        assert!(holds && reason.contains(": 4, 60;"), "{reason}");
        assert!(told(&Opener::Group(Vec::new())).1.contains("in the group of /dev/kvm"));
        assert!(!told(&Opener::User).0);
    }
}
