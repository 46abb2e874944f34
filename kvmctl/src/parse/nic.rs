//! Network cards.

use super::{Invalid, Suboptions, mac, name, rate, split_commas};
use proto::vmd::v1::{Nic, NicFilter, NicModel, Rate};
use std::net::IpAddr;

/// `NETWORK[,mac=M][,model=virtio|e1000|e1000e][,ip=ADDR...][,extra-ip=ADDR...][,filter=on|off][,isolated]`
/// `[,rate-in=RATE][,rate-out=RATE][,group=NAME...]`; one `ip` of each family at most.
///
/// # Errors
/// If a part is unknown, given too often or not a value of its key.
pub fn nic(text: &str) -> Result<Nic, Invalid> {
    const ONCE: [&str; 6] = ["mac", "model", "filter", "isolated", "rate-in", "rate-out"];
    let parts = split_commas(text);
    let (first, rest) = parts.split_first().ok_or_else(|| Invalid::new("the network is missing"))?;
    let options = Suboptions::new(rest, &ONCE, &["ip", "extra-ip", "group"])?;
    let models = [("virtio", NicModel::Virtio), ("e1000", NicModel::E1000), ("e1000e", NicModel::E1000e)];
    let filters = [("on", NicFilter::On), ("off", NicFilter::Off)];
    let (ipv4, ipv6): (Vec<_>, Vec<_>) = addresses(&options, "ip")?.into_iter().partition(IpAddr::is_ipv4);
    Ok(Nic {
        network: format!("networks/{}", name(first)?),
        mac: options.value("mac")?.map(mac).transpose()?.map(|m| m.to_string()).unwrap_or_default(),
        model: options.choice("model", &models, NicModel::Unspecified)?.into(),
        ipv4_address: only(&ipv4)?,
        ipv6_address: only(&ipv6)?,
        extra_addresses: addresses(&options, "extra-ip")?.iter().map(ToString::to_string).collect(),
        filter: options.choice("filter", &filters, NicFilter::Unspecified)?.into(),
        isolated: options.switch("isolated")?,
        rate_in: limit(&options, "rate-in")?,
        rate_out: limit(&options, "rate-out")?,
        groups: options
            .values("group")
            .map(|group| Ok(format!("groups/{}", name(group?)?)))
            .collect::<Result<_, Invalid>>()?,
    })
}

fn addresses(options: &Suboptions, key: &str) -> Result<Vec<IpAddr>, Invalid> {
    let address = |text: &str| {
        text.parse::<IpAddr>().map_err(|_| {
            Invalid::new(format!("`{text}` is not an IP address"))
                .hint(format!("write {key}=192.168.100.10 or {key}=fd00:1::10, without a prefix length"))
        })
    };
    options.values(key).map(|text| address(text?)).collect()
}

/// One address of a family at most.
fn only(addresses: &[IpAddr]) -> Result<String, Invalid> {
    match addresses {
        [] => Ok(String::new()),
        [one] => Ok(one.to_string()),
        [one, two, ..] => Err(Invalid::new(format!("{one} and {two} are of one family"))
            .hint("a network card has one `ip` of each family; further ones are given with extra-ip=ADDR")),
    }
}

fn limit(options: &Suboptions, key: &str) -> Result<Option<Rate>, Invalid> {
    let Some(text) = options.value(key)? else { return Ok(None) };
    let bits_per_second =
        rate(text).map_err(|why| Invalid { message: format!("{key}={text}: {}", why.message), ..why })?;
    Ok(Some(Rate { bits_per_second, burst_bytes: 0 }))
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_given_is_left_to_the_daemons() {
        let plain = nic("lan").unwrap();
        assert_eq!(plain, Nic { network: "networks/lan".into(), ..Default::default() });
    }

    #[test]
    fn a_network_card_with_everything() {
        let full = nic(
            "lan,model=e1000,mac=52:54:00:AA:00:01,ip=10.0.0.2,ip=FD00::2,extra-ip=10.0.0.3,extra-ip=10.0.0.4,\
             filter=off,isolated,rate-in=100M,rate-out=20M,group=web,group=db",
        )
        .unwrap();
        assert_eq!(full.mac, "52:54:00:aa:00:01");
        assert_eq!(full.model(), NicModel::E1000);
        assert_eq!((full.ipv4_address.as_str(), full.ipv6_address.as_str()), ("10.0.0.2", "fd00::2"));
        assert_eq!(full.extra_addresses, ["10.0.0.3", "10.0.0.4"]);
        assert_eq!(full.filter(), NicFilter::Off);
        assert!(full.isolated);
        assert_eq!(full.groups, ["groups/web", "groups/db"]);
        let bits = |rate: Option<Rate>| rate.map(|rate| rate.bits_per_second);
        assert_eq!((bits(full.rate_in), bits(full.rate_out)), (Some(100_000_000), Some(20_000_000)));
    }

    #[test]
    fn errors_name_what_is_wrong() {
        for (text, part) in [
            ("", "name"),
            ("LAN", "name"),
            ("lan,mac=01:00:00:00:00:00", "MAC"),
            ("lan,model=ne2000", "the values are virtio, e1000, e1000e"),
            (
                "lan,queues=2",
                "the keys are mac, model, filter, isolated, rate-in, rate-out, ip, extra-ip, group",
            ),
            ("lan,,x", "name"),
            ("lan,ip", "`ip` needs a value"),
            ("lan,ip=10.0.0.2/24", "without a prefix length"),
            ("lan,ip=10.0.0.2,ip=10.0.0.3", "10.0.0.2 and 10.0.0.3 are of one family"),
            ("lan,extra-ip=10.0.0.999", "`10.0.0.999` is not an IP address"),
            ("lan,filter=maybe", "the values are on, off"),
            ("lan,filter=on,filter=off", "`filter` is given twice"),
            ("lan,rate-in=0", "rate-in=0: a rate of zero"),
            ("lan,rate-out=fast", "rate-out=fast: not a rate"),
        ] {
            let error = nic(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}") {
            let _ = nic(&text);
        }
    }
}
