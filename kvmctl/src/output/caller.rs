//! Who a daemon takes the caller for.

use super::set;
use proto::access::v1 as wire;
use serde::Serialize;

/// A caller.
#[derive(Clone, Debug, Serialize)]
pub struct Caller {
    /// By the socket's credentials.
    pub uid: u32,
    /// By the user database.
    pub user: Option<String>,
    /// viewer, operator or admin.
    pub role: &'static str,
    /// Why that one.
    pub source: String,
    /// The networks that its machines and ports may be on; null: any.
    pub networks: Option<Vec<String>>,
    /// Whether its ports may go without a filter.
    pub unfiltered: bool,
    /// The groups that it may put its ports into; null: any.
    pub port_groups: Option<Vec<String>>,
    /// What it may have; null: no limit.
    pub quota: Option<Quota>,
    /// Where its disks and kernels have to be; empty: anywhere.
    pub image_folders: Vec<String>,
    /// What decides it.
    pub access_file: String,
}

/// What a user may have; null: no limit.
#[derive(Clone, Debug, Serialize)]
pub struct Quota {
    /// Ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<u32>,
    /// Ports on one network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports_per_network: Option<u32>,
    /// Machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machines: Option<u32>,
    /// Virtual CPUs of all machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Bytes of all machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Changes in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes_per_second: Option<u32>,
}

impl From<wire::Caller> for Caller {
    fn from(caller: wire::Caller) -> Self {
        let role = match caller.role() {
            wire::Role::Unspecified => "unknown",
            wire::Role::Viewer => "viewer",
            wire::Role::Operator => "operator",
            wire::Role::Admin => "admin",
        };
        let bare = |name: String| name.strip_prefix("networks/").map(str::to_owned).unwrap_or(name);
        let group = |name: &String| super::last_part(name);
        let port_groups = (!caller.all_port_groups).then(|| caller.port_groups.iter().map(group).collect());
        let networks = (!caller.all_networks).then(|| caller.networks.into_iter().map(bare).collect());
        Self {
            uid: caller.uid,
            user: set(caller.user),
            role,
            source: caller.source,
            networks,
            unfiltered: caller.unfiltered,
            port_groups,
            quota: caller.quota.map(|quota| Quota {
                ports: quota.ports,
                ports_per_network: quota.ports_per_network,
                machines: quota.machines,
                vcpus: quota.vcpus,
                memory_bytes: quota.memory_bytes,
                changes_per_second: quota.changes_per_second,
            }),
            image_folders: caller.image_folders,
            access_file: caller.access_file,
        }
    }
}

impl Caller {
    /// The caller in a few words: `operator (a member of the socket's group), uid 1000, on lan, dmz, at most 16 ports`.
    #[must_use]
    pub fn words(&self) -> String {
        let mut words = format!("{} ({}), uid {}", self.role, self.source, self.uid);
        if self.role != "operator" {
            return words;
        }
        if let Some(networks) = &self.networks {
            let on = if networks.is_empty() { "no network".to_owned() } else { networks.join(", ") };
            words.push_str(&format!("; on {on}"));
        }
        if let Some(groups) = self.port_groups.as_ref().filter(|groups| !groups.is_empty()) {
            words.push_str(&format!("; ports in groups {}", groups.join(", ")));
        }
        let quota = self.quota.iter().flat_map(|quota| {
            let number = |most: Option<u32>, what| most.map(|most| format!("{most} {what}"));
            [
                number(quota.ports, "ports"),
                number(quota.ports_per_network, "ports on a network"),
                number(quota.machines, "machines"),
                number(quota.vcpus, "virtual CPUs"),
                quota.memory_bytes.map(|bytes| format!("{} MiB of memory", bytes >> 20)),
            ]
        });
        let quota: Vec<String> = quota.flatten().collect();
        if !quota.is_empty() {
            words.push_str(&format!("; at most {}", quota.join(", ")));
        }
        if !self.image_folders.is_empty() {
            words.push_str(&format!("; files in {}", self.image_folders.join(", ")));
        }
        words
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_operator_reads_its_bounds_and_an_admin_has_none() {
        let operator = wire::Caller {
            uid: 1000,
            role: wire::Role::Operator.into(),
            source: "a grant of the access file".into(),
            networks: vec!["networks/lan".into(), "networks/dmz".into()],
            quota: Some(wire::Quota { machines: Some(4), memory_bytes: Some(8 << 30), ..Default::default() }),
            image_folders: vec!["/var/lib/kvmctl/images".into()],
            ..Default::default()
        };
        assert_eq!(
            Caller::from(operator).words(),
            "operator (a grant of the access file), uid 1000; on lan, dmz; at most 4 machines, 8192 MiB of \
             memory; files in /var/lib/kvmctl/images"
        );
        let admin =
            wire::Caller { role: wire::Role::Admin.into(), source: "root".into(), ..Default::default() };
        assert_eq!(Caller::from(admin).words(), "admin (root), uid 0");
    }
}
