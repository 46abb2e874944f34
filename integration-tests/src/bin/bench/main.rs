//! Measures kvmctl beside bare QEMU and libvirt and prints a table. `bench.sh` makes what it needs and runs it.

mod measure;
mod subjects;
mod traffic;

use measure::{Row, Samples, print_table};
use proto::netd::v1::{
    CreatePortRequest, DeletePortRequest, Port, PortFilter, PortSpec, port_service_client::PortServiceClient,
};
use std::{fs, time::Instant};
use subjects::{Bare, Kvmctl, Virsh, World};
use tonic::transport::Channel;

/// Ports of the small networks; the large one's are `World::ports`.
const FEW: [usize; 2] = [10, 100];
/// Name of a group.
const GROUP: &str = "ten";
/// Creates at a level and turn; there are two turns.
const CREATES: usize = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let world = World::from_environment();
    let kvmctl = Kvmctl::new(&world);
    let virsh = Virsh::new(&world);
    // Nothing has been asked of the daemons yet but two empty lists.
    let idle = memory(&world);
    let mut rows = clients(&world, &kvmctl, virsh.as_ref());
    rows.extend(networks(&world, &kvmctl, virsh.as_ref()));
    rows.extend(machines(&world, &kvmctl, virsh.as_ref()));
    let used = memory(&world);
    let many = many_networks(&world, &kvmctl, virsh.as_ref());
    rows.extend(traffic::rows(&kvmctl, world.repetitions));
    let (port_rows, loaded) = ports(&world, &kvmctl, None).await;
    rows.extend(port_rows);
    group_of_ten_rules(&kvmctl);
    rows.extend(ports(&world, &kvmctl, Some(GROUP)).await.0);
    println!("Times in milliseconds: median (fastest - slowest) of n. A and B were measured in turns.\n");
    print_table(&rows);
    println!("\nResident memory in MiB: RSS / PSS. Aim: under 15 for each of ours, idle.\n");
    println!("  {:<44} {:>12} {:>12}", "", "RSS", "PSS");
    let with_networks = format!("{} networks", world.networks);
    for (when, lines) in [
        ("idle, as started", idle),
        ("idle, after the machines above", used),
        (with_networks.as_str(), many),
        (loaded.0.as_str(), loaded.1),
    ] {
        for (program, rss, pss) in lines {
            println!("  {:<44} {rss:>12.1} {pss:>12.1}", format!("{program}, {when}"));
        }
    }
}

/// What starting a client and asking the least costs: part of every number above it.
fn clients(world: &World, kvmctl: &Kvmctl<'_>, virsh: Option<&Virsh<'_>>) -> Vec<Row> {
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for turn in 0..=world.repetitions {
        ours.add(turn, kvmctl.time(&["vm", "list"]));
        if let Some(virsh) = virsh {
            theirs.add(turn, virsh.time(&["list"]));
        }
    }
    vec![Row::new("list no machines", "kvmctl vm list", ours, "virsh list", theirs)]
}

/// Networks without DHCP and DNS, and with both ready to answer when the client ends.
fn networks(world: &World, kvmctl: &Kvmctl<'_>, virsh: Option<&Virsh<'_>>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, dhcp, aim) in
        [("create a NAT network", false, Some(10.0)), ("create a NAT network, DHCP ready", true, None)]
    {
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        for turn in 0..=world.repetitions {
            let name = format!("n{turn}");
            ours.add(turn, kvmctl.create_network(&name, turn, dhcp));
            kvmctl.time(&["network", "delete", &name]);
            if let Some(virsh) = virsh {
                let file = virsh.network_file(&name, turn, dhcp);
                theirs.add(turn, virsh.time(&["net-create", &file]));
                virsh.time(&["net-destroy", &name]);
            }
        }
        let row = Row::new(what, "kvmctl network create", ours, "virsh net-create", theirs);
        rows.push(match aim {
            Some(times) => row.at_least_faster(times),
            None => row,
        });
    }
    rows
}

/// What many networks with DHCP and DNS take: the daemon and all its dnsmasq together.
fn many_networks(world: &World, kvmctl: &Kvmctl<'_>, virsh: Option<&Virsh<'_>>) -> Vec<Memory> {
    // One after the other: both run dnsmasq as nobody, who may have 128 inotify instances by the kernel's default.
    let names: Vec<String> = (0..world.networks).map(|number| format!("m{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        kvmctl.create_network(name, number, true);
    }
    let mut sums = vec![with_dnsmasqs(world, "netd", &world.dir.display().to_string())];
    for name in &names {
        kvmctl.time(&["network", "delete", name]);
    }
    if let Some(virsh) = virsh {
        for (number, name) in names.iter().enumerate() {
            virsh.time(&["net-create", &virsh.network_file(name, number, true)]);
        }
        sums.push(with_dnsmasqs(world, "libvirtd", "/var/lib/libvirt/dnsmasq"));
        for name in &names {
            virsh.time(&["net-destroy", name]);
        }
    }
    sums
}

/// A daemon and every dnsmasq whose command line names `mark`.
fn with_dnsmasqs(world: &World, daemon: &str, mark: &str) -> Memory {
    let pid = world.daemons.iter().find(|(name, _)| name == daemon).expect("a daemon of that name").1;
    let helpers = dnsmasqs(mark);
    let name = format!("{daemon} and {} dnsmasq", helpers.len());
    let all = helpers.into_iter().chain([pid]).map(memory_of);
    let (rss, pss) = all.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    (name, rss, pss)
}

/// Processes of dnsmasq whose command line names `mark`.
fn dnsmasqs(mark: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("comm").trim() == "dnsmasq" && read("cmdline").contains(mark)
        })
        .collect()
}

fn machines(world: &World, kvmctl: &Kvmctl<'_>, virsh: Option<&Virsh<'_>>) -> Vec<Row> {
    kvmctl.time(&["network", "create", "lan", "--mode", "nat", "--ipv4", "10.62.0.1/24", "--dhcp", "off"]);
    kvmctl.create_machine();
    kvmctl.time(&["vm", "start", "web"]);
    let bare = Bare::like_the_machine(world, kvmctl);
    kvmctl.time(&["vm", "stop", "web", "--force"]);
    if let Some(virsh) = virsh {
        virsh.define_machine();
    }
    let (mut ours, mut alone, mut theirs) = (Samples::default(), Samples::default(), Samples::default());
    for turn in 0..=world.repetitions {
        ours.add(turn, kvmctl.time(&["vm", "start", "web"]));
        kvmctl.time(&["vm", "stop", "web", "--force"]);
        alone.add(turn, bare.time_start());
        bare.stop();
        if let Some(virsh) = virsh {
            theirs.add(turn, virsh.time(&["start", "web"]));
            virsh.time(&["destroy", "web"]);
        }
    }
    kvmctl.time(&["vm", "delete", "web"]);
    kvmctl.time(&["network", "delete", "lan", "--force"]);
    let started = "start a machine";
    vec![
        Row::new(started, "kvmctl vm start", ours.clone(), "qemu -daemonize", alone).at_most_slower(1.5),
        Row::new(started, "kvmctl vm start", ours, "virsh start", theirs).at_least_faster(4.0),
    ]
}

/// What such a group is for.
fn group_of_ten_rules(kvmctl: &Kvmctl<'_>) {
    kvmctl.time(&["group", "create", GROUP]);
    for number in 0..10 {
        let (port, remote) = (format!("{0}-{0}9", 80 + number), format!("10.{number}.0.0/16"));
        let protocol = if number % 2 == 0 { "tcp" } else { "udp" };
        let rule = ["--direction", "in", "--protocol", protocol, "--port", &port, "--remote", &remote];
        kvmctl.time(&[&["group", "rule", "add", GROUP][..], &rule].concat());
    }
}

/// Port creates with few ports there and with many, by one connection and by kvmctl; and netd's memory with many. All
/// ports are in the group, if one is given.
async fn ports(world: &World, kvmctl: &Kvmctl<'_>, group: Option<&str>) -> (Vec<Row>, (String, Vec<Memory>)) {
    let options = group.map_or_else(Vec::new, |group| vec!["--group", group]);
    let by_kvmctl = [&["port", "create", "many", "extra"][..], &options].concat();
    kvmctl.time(&["network", "create", "many", "--mode", "nat", "--ipv4", "10.64.0.1/16"]);
    let channel = shared::socket::channel(&world.netd_address()).expect("netd's address");
    let mut client = PortServiceClient::new(channel);
    let levels = [FEW[0], FEW[1], world.ports];
    let (mut rpc, mut program) = (levels.map(|_| Samples::default()), levels.map(|_| Samples::default()));
    let mut there = 0;
    let mut loaded = Vec::new();
    for turn in 0..2 {
        for (level, target) in levels.into_iter().enumerate() {
            while there < target {
                create_port(&mut client, &format!("p{there}"), group).await;
                there += 1;
            }
            while there > target {
                there -= 1;
                delete_port(&mut client, &format!("p{there}")).await;
            }
            if target == world.ports {
                loaded = memory(world);
            }
            // One more on the first turn, which does not count.
            for create in turn.min(1)..=CREATES {
                let begin = Instant::now();
                create_port(&mut client, "extra", group).await;
                rpc[level].add(create, begin.elapsed());
                delete_port(&mut client, "extra").await;
                program[level].add(create, kvmctl.time(&by_kvmctl));
                delete_port(&mut client, "extra").await;
            }
        }
    }
    kvmctl.time(&["network", "delete", "many", "--force"]);
    let at = levels.map(|ports| format!("at {ports} ports"));
    let row = |what: &str, samples: &[Samples; 3], level: usize| {
        Row::new(what, &at[level], samples[level].clone(), &at[0], samples[0].clone()).at_most_slower(1.5)
    };
    let [call, client] = match group {
        None => ["create a port, filter on, one gRPC call", "kvmctl port create, filter on"],
        Some(_) => ["a port in a group of 10 rules, one gRPC call", "kvmctl port create --group"],
    };
    let rows =
        vec![row(call, &rpc, 1), row(call, &rpc, 2), row(client, &program, 1), row(client, &program, 2)];
    (rows, (format!("with {} ports", world.ports), loaded))
}

async fn create_port(client: &mut PortServiceClient<Channel>, name: &str, group: Option<&str>) {
    let port = Port {
        name: format!("networks/many/ports/{name}"),
        spec: Some(PortSpec {
            filter: PortFilter::On.into(),
            groups: group.map(|group| format!("groups/{group}")).into_iter().collect(),
            ..PortSpec::default()
        }),
        ..Port::default()
    };
    client.create_port(CreatePortRequest { port: Some(port) }).await.expect("create a port");
}

async fn delete_port(client: &mut PortServiceClient<Channel>, name: &str) {
    let request = DeletePortRequest { name: format!("networks/many/ports/{name}"), uid: String::new() };
    client.delete_port(request).await.expect("delete a port");
}

/// A program's name, RSS and PSS in MiB.
type Memory = (String, f64, f64);

fn memory(world: &World) -> Vec<Memory> {
    let read = |(name, pid): &(String, u32)| {
        let (rss, pss) = memory_of(*pid);
        (name.clone(), rss, pss)
    };
    world.daemons.iter().map(read).collect()
}

/// RSS and PSS of a process in MiB.
fn memory_of(pid: u32) -> (f64, f64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let field = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("field");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    };
    (field("Rss:"), field("Pss:"))
}
