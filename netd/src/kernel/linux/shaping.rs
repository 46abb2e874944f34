//! What limits the bandwidth of ports: `shape` by the names of links.

use super::{LinuxKernel, refused};
use crate::{
    kernel::{
        Action, Link,
        link::{self, RawLink},
        shape, sysctl,
    },
    model::{IfName, LINK_GROUP, Rate},
};
use rtnetlink::{LinkIfb, LinkUnspec};
use shared::{fault::Fault, steps};
use std::collections::BTreeMap;

/// What the kernel needs beside what taps and bridges need.
const HINT: &str = "the kernel needs sch_tbf, sch_ingress, cls_u32, act_mirred and ifb (modprobe names them)";

fn failed(what: String, error: rtnetlink::Error) -> Fault {
    refused(what, error).hint(HINT)
}

impl LinuxKernel {
    /// Carries out an action that limits bandwidth.
    pub(super) async fn shape(&self, action: &Action) -> Result<(), Fault> {
        match action {
            Action::CreateIfb { name, alias, rate } => self.create_ifb(name, alias, *rate).await,
            Action::SetRate(name, rate) => self.set_rate(name, *rate).await,
            Action::ClearRate(name) => shape::clear(&self.netlink(), self.index(name).await?)
                .await
                .map_err(|e| failed(format!("cannot remove the rate of `{name}`"), e)),
            Action::Redirect { tap, ifb } => self.redirect(tap, ifb).await,
            Action::Unredirect(tap) => {
                let index = self.index(tap).await?;
                let _dump = self.dump.lock().await;
                shape::unredirect(&self.netlink(), index)
                    .await
                    .map_err(|e| failed(format!("cannot end the redirect of `{tap}`"), e))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn set_rate(&self, name: &IfName, rate: Rate) -> Result<(), Fault> {
        shape::set(&self.netlink(), self.index(name).await?, rate)
            .await
            .map_err(|e| failed(format!("cannot set the rate of `{name}`"), e))
    }

    pub(super) async fn redirect(&self, tap: &IfName, ifb: &IfName) -> Result<(), Fault> {
        let (from, to) = (self.index(tap).await?, self.index(ifb).await?);
        shape::redirect(&self.netlink(), from, to)
            .await
            .map_err(|e| failed(format!("cannot lead what `{tap}` receives through `{ifb}`"), e))
    }

    /// An ifb that is up and has its rate before anything is led through it.
    async fn create_ifb(&self, name: &IfName, alias: &str, rate: Rate) -> Result<(), Fault> {
        let message = LinkIfb::new(name.as_str()).link_group(LINK_GROUP).down().build();
        let made = self.make_link(name, alias, message).await;
        made.map_err(|e| failed(format!("cannot create ifb `{name}`"), e))?;
        steps::point(|| format!("after the creation of ifb `{name}`"))?;
        let key = format!("net/ipv6/conf/{name}/disable_ipv6");
        if sysctl::read(&key)?.is_some() {
            sysctl::write(&key, "1")?;
        }
        let index = self.index(name).await?;
        // Given at creation, the alias would be ignored.
        self.set_link(name, LinkUnspec::new_with_index(index).alias(alias), "mark").await?;
        steps::point(|| format!("after the mark of `{name}`"))?;
        self.set_rate(name, rate).await?;
        self.set_link(name, LinkUnspec::new_with_index(index).up(), "bring up").await
    }

    /// As `some_links`, with what shapes them.
    pub(super) async fn shaped_links(&self, names: &[IfName]) -> Result<BTreeMap<IfName, Link>, Fault> {
        let mut raw: Vec<RawLink> = Vec::new();
        for name in names {
            let Some(message) = self.link(name).await? else { continue };
            let Some(mut found) = link::parse(&message) else { continue };
            if found.link.group == LINK_GROUP {
                let _dump = self.dump.lock().await;
                shape::look_at(&self.netlink(), &mut found.link, link::qdisc(&message))
                    .await
                    .map_err(|e| refused(format!("cannot look at the rate of `{name}`"), e))?;
            }
            raw.push(found);
        }
        Ok(link::resolve(raw))
    }
}
