//! What a machine may have of the host.

use super::Layer;
use crate::model::Accelerator;
use std::collections::BTreeSet;

/// QEMU's own memory, however small the guest: program, devices, display, buffers of disks and NICs.
pub const OVERHEAD: u64 = 256 << 20;
/// A thread's stacks and state.
pub const OVERHEAD_PER_VCPU: u64 = 8 << 20;
/// One part in this many of the guest's memory: page tables of the host's and, with KVM, of the guest's, 8 bytes for
/// each page of 4 KiB, and as much again.
pub const OVERHEAD_SHARE: u64 = 128;
/// An image's tables, of which QEMU keeps 32 MiB by default if it is qcow2, and its requests under way.
pub const OVERHEAD_PER_IMAGE: u64 = 40 << 20;
/// Copies of kernel and initramfs: in QEMU, which gives them to the guest at each reset, and in the root folder.
pub const COPIES: u64 = 2;
/// What QEMU's emulation keeps of translated code at most, and what it knows of it.
pub const OVERHEAD_TCG: u64 = (1 << 30) + (128 << 20);
/// Processors that QEMU may use beside one for each virtual CPU: for disks, NICs and the display.
pub const MORE_CPUS: u64 = 1;
/// Share of a virtual CPU where processors are scarce; vmd's own is 100, the kernel's default. At most 10000 for 255.
pub const WEIGHT_PER_VCPU: u64 = 20;
/// Microseconds; the kernel's default.
const PERIOD: u64 = 100_000;
const MIB: u64 = 1 << 20;

/// A machine's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that the guest sees.
    pub guest: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// How they are executed.
    pub accelerator: Accelerator,
    /// Processes and threads.
    pub threads: u64,
    /// Images of disks, with those behind them.
    pub images: u64,
    /// Bytes of kernel and initramfs.
    pub boot: u64,
}

impl Limits {
    /// Bytes of the host's memory that QEMU may have in all.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let emulation = match self.accelerator {
            Accelerator::Kvm => 0,
            Accelerator::Tcg => OVERHEAD_TCG,
        };
        let devices = OVERHEAD_PER_VCPU * u64::from(self.vcpus) + OVERHEAD_PER_IMAGE * self.images;
        let own = (OVERHEAD + devices + emulation).saturating_add(self.boot.saturating_mul(COPIES));
        self.guest.saturating_add(self.guest / OVERHEAD_SHARE).saturating_add(own)
    }

    fn cpus(&self) -> u64 {
        u64::from(self.vcpus) + MORE_CPUS
    }

    /// Files of a group and what is written to them, for the layers that hold.
    #[must_use]
    pub fn files(&self, layers: &BTreeSet<Layer>) -> Vec<(&'static str, String)> {
        let mut files = Vec::new();
        if layers.contains(&Layer::Memory) {
            files.push(("memory.max", self.memory().to_string()));
            // The host may swap a guest out as it could before, and no more than the guest.
            files.push(("memory.swap.max", self.guest.to_string()));
            // Half a machine is of no use.
            files.push(("memory.oom.group", "1".into()));
        }
        if layers.contains(&Layer::Cpu) {
            files.push(("cpu.max", format!("{} {PERIOD}", self.cpus() * PERIOD)));
            files.push(("cpu.weight", (WEIGHT_PER_VCPU * u64::from(self.vcpus)).to_string()));
        }
        if layers.contains(&Layer::Processes) {
            files.push(("pids.max", self.threads.to_string()));
        }
        files
    }

    /// The limit of a layer, for people.
    #[must_use]
    pub fn words(&self, layer: Layer) -> Option<String> {
        match layer {
            Layer::Memory => Some(format!("at most {}", mebibytes(self.memory()))),
            Layer::Cpu => Some(format!("at most {} CPUs", self.cpus())),
            Layer::Processes => Some(format!("at most {} threads", self.threads)),
            _ => None,
        }
    }
}

/// Bytes, for people.
#[must_use]
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / MIB)
}

#[cfg(test)]
mod test {
    use super::*;

    const SMALL: Limits =
        Limits { guest: 1 << 30, vcpus: 2, accelerator: Accelerator::Kvm, threads: 1026, images: 0, boot: 0 };

    #[test]
    fn each_layer_that_holds_has_its_files_and_no_other() {
        let files = |layers: &[Layer]| {
            let files = SMALL.files(&layers.iter().copied().collect());
            files.into_iter().map(|(name, text)| format!("{name}={text}")).collect::<Vec<_>>()
        };
        assert_eq!(files(&[Layer::ControlGroup, Layer::Limits]), Vec::<String>::new());
        let memory = ["memory.max=1367343104", "memory.swap.max=1073741824", "memory.oom.group=1"];
        assert_eq!(files(&[Layer::Memory]), memory);
        assert_eq!(files(&[Layer::Cpu]), ["cpu.max=300000 100000", "cpu.weight=40"]);
        assert_eq!(files(&[Layer::Processes]), ["pids.max=1026"]);
        assert_eq!(SMALL.words(Layer::Memory).unwrap(), "at most 1304 MiB");
    }

    #[test]
    fn limits_stay_within_what_the_kernel_takes_and_above_what_the_guest_has() {
        let largest =
            Limits { guest: u64::MAX, vcpus: 255, accelerator: Accelerator::Tcg, boot: u64::MAX, ..SMALL };
        assert_eq!(largest.memory(), u64::MAX);
        let weight = largest.files(&[Layer::Cpu].into());
        assert!(weight[1].1.parse::<u64>().unwrap() <= 10_000, "{weight:?}");
        let emulated = Limits { accelerator: Accelerator::Tcg, ..SMALL };
        let booted = Limits { images: 3, boot: 100 << 20, ..SMALL };
        assert_eq!(booted.memory() - SMALL.memory(), (3 * 40 + 2 * 100) << 20);
        assert!(SMALL.memory() > SMALL.guest + OVERHEAD && emulated.memory() > SMALL.memory() + (1 << 30));
    }
}
