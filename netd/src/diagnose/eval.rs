//! What becomes of a packet in the rules: three-valued, since not all rules can be read. Pure.

use super::{
    packet::{Packet, Truth},
    rules::{
        Arms, Chain, Condition, Family, Hook, Key, Place, Rule, Ruleset, Statement, Table, Test, Verdict,
    },
};
use std::{cell::Cell, cmp::Reverse};

/// nft allows 16 jumps (NFT_JUMP_STACK_SIZE).
const DEEPEST: usize = 17;
/// Most rules that are looked at for one packet in one base chain. A packet may come to a chain by many ways, and the
/// ways multiply with each jump; what real programs write takes a few thousand.
const MOST_RULES: usize = 200_000;

/// What one base chain does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It goes on.
    Pass {
        /// The rule or policy that says so.
        by: Place,
        /// Whether it goes on with other addresses.
        translated: bool,
    },
    /// It ends here.
    Drop {
        /// The rule or policy that says so.
        by: Place,
    },
    /// Nobody can tell from here.
    Unsure {
        /// Where it would end; `None`: by a rule that hands it to somebody else.
        drop: Option<Place>,
        /// The first rule that cannot be told to match or not.
        because: Place,
    },
}

/// A base chain that a packet meets, and what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// The chain, with its policy for words.
    pub chain: Place,
    /// What it does.
    pub judgement: Judgement,
}

/// Where packets are when they meet chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer<'a> {
    /// IPv4 or IPv6 rules.
    Ip {
        /// Whether it is IPv4.
        v4: bool,
    },
    /// Frames on a bridge.
    Bridge,
    /// Frames of this device.
    Device(&'a str),
}

/// What each base chain of a hook does with a packet, in the order of their priorities, to the first that ends it.
#[must_use]
pub fn hook(ruleset: &Ruleset, layer: Layer<'_>, hook: Hook, packet: &Packet) -> Vec<Met> {
    let mut chains: Vec<(&Table, &str, &Chain, i32)> = Vec::new();
    for table in ruleset.tables.iter().filter(|table| sees(table.family, layer)) {
        for (name, chain) in &table.chains {
            let Some(base) = chain.base.as_ref().filter(|base| base.hook == hook) else { continue };
            let here = match layer {
                Layer::Device(device) => base.devices.iter().any(|d| d == device),
                _ => base.devices.is_empty(),
            };
            if here && (!base.nat || packet.is_first()) {
                chains.push((table, name, chain, base.priority));
            }
        }
    }
    chains.sort_by_key(|(table, .., priority)| (*priority, Reverse(table.legacy)));
    let mut met = Vec::new();
    for (table, name, ..) in chains {
        let walk = Walk { table, packet, base: name, left: Cell::new(MOST_RULES) };
        let Some(one) = walk.run() else { continue };
        let ends = matches!(one.judgement, Judgement::Drop { .. });
        met.push(one);
        if ends {
            break;
        }
    }
    met
}

fn sees(family: Family, layer: Layer<'_>) -> bool {
    match layer {
        Layer::Ip { v4: true } => matches!(family, Family::Ip | Family::Inet),
        Layer::Ip { v4: false } => matches!(family, Family::Ip6 | Family::Inet),
        Layer::Bridge => family == Family::Bridge,
        Layer::Device(_) => matches!(family, Family::Netdev | Family::Inet),
    }
}

/// A packet's way through one base chain.
struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet,
    base: &'a str,
    /// How many rules more are looked at.
    left: Cell<usize>,
}

/// All ends that a packet may come to in a chain.
#[derive(Default)]
struct Ends {
    accept: Option<Place>,
    translated: bool,
    drop: Option<Place>,
    /// A rule took it that says nothing of its end.
    lost: bool,
    /// It comes out at the chain's end, or returns.
    through: bool,
    /// The first rule that may match or not.
    because: Option<Place>,
}

impl Walk<'_> {
    fn run(&self) -> Option<Met> {
        let base = self.table.chains.get(self.base)?.base.as_ref()?;
        let mut ends = self.chain(self.base, 0);
        let policy = Rule {
            handle: None,
            text: format!("policy {}", if base.drops { "drop" } else { "accept" }),
            body: Vec::new(),
        };
        let chain = Place { policy: true, ..self.place(self.base, &policy)? };
        if ends.through {
            let end = if base.drops { &mut ends.drop } else { &mut ends.accept };
            end.get_or_insert_with(|| chain.clone());
        }
        let judgement = match (ends.accept, ends.drop, ends.lost) {
            (Some(by), None, false) => Judgement::Pass { by, translated: ends.translated },
            (None, Some(by), false) => Judgement::Drop { by },
            (_, drop, _) => {
                Judgement::Unsure { drop, because: ends.because.unwrap_or_else(|| chain.clone()) }
            }
        };
        Some(Met { chain, judgement })
    }

    fn place(&self, chain: &str, rule: &Rule) -> Option<Place> {
        let base = self.table.chains.get(self.base)?.base.as_ref()?;
        Some(Place {
            family: self.table.family,
            table: self.table.name.clone(),
            legacy: self.table.legacy,
            chain: chain.to_owned(),
            base: self.base.to_owned(),
            hook: base.hook,
            priority: base.priority,
            handle: rule.handle,
            text: rule.text.clone(),
            policy: false,
        })
    }

    fn chain(&self, name: &str, depth: usize) -> Ends {
        let mut ends = Ends::default();
        let Some(chain) = self.table.chains.get(name).filter(|_| depth < DEEPEST) else {
            ends.lost = true;
            return ends;
        };
        for rule in &chain.rules {
            let Some(left) = self.left.get().checked_sub(1) else {
                ends.lost = true;
                return ends;
            };
            self.left.set(left);
            if !self.rule(name, rule, depth, &mut ends) {
                return ends;
            }
        }
        ends.through = true;
        ends
    }

    /// Adds what the rule may do; false if no packet comes behind it.
    fn rule(&self, chain: &str, rule: &Rule, depth: usize, ends: &mut Ends) -> bool {
        let mut applies = Truth::Yes;
        for statement in &rule.body {
            let verdicts: Vec<(Truth, &Verdict)> = match statement {
                Statement::When(condition) => {
                    applies = applies.and(self.holds(condition));
                    if applies == Truth::No {
                        return true;
                    }
                    continue;
                }
                Statement::Then(verdict) => vec![(Truth::Yes, verdict)],
                Statement::Choose(fields, arms) => {
                    let arms: &[(Key, Verdict)] = match arms {
                        Arms::Here(arms) => arms,
                        Arms::Named(name) => self.table.maps.get(name).map_or(&[], Vec::as_slice),
                    };
                    let matching = |(key, verdict)| (self.packet.matches(fields, key), verdict);
                    arms.iter().map(|(key, verdict)| matching((key, verdict))).collect()
                }
            };
            for (matches, verdict) in verdicts {
                let surely = applies.and(matches);
                if surely == Truth::No {
                    continue;
                }
                if surely == Truth::Unknown && ends.because.is_none() {
                    ends.because = self.place(chain, rule);
                }
                let goes_on = self.carry_out(chain, rule, verdict, (depth, ends));
                if surely == Truth::Yes && !goes_on {
                    return false;
                }
                if surely == Truth::Yes && *verdict != Verdict::Continue {
                    return true;
                }
            }
        }
        true
    }

    /// Adds what a verdict does; whether the next rule comes then.
    fn carry_out(
        &self,
        chain: &str,
        rule: &Rule,
        verdict: &Verdict,
        (depth, ends): (usize, &mut Ends),
    ) -> bool {
        match verdict {
            Verdict::Accept | Verdict::Translate => {
                ends.translated |= *verdict == Verdict::Translate;
                ends.accept = ends.accept.take().or_else(|| self.place(chain, rule));
                false
            }
            Verdict::Drop => {
                ends.drop = ends.drop.take().or_else(|| self.place(chain, rule));
                false
            }
            Verdict::Unreadable => {
                ends.because = ends.because.take().or_else(|| self.place(chain, rule));
                ends.lost = true;
                false
            }
            Verdict::Return => {
                ends.through = true;
                false
            }
            Verdict::Continue => true,
            Verdict::Jump(target) | Verdict::Goto(target) => {
                let inner = self.chain(target, depth + 1);
                ends.accept = ends.accept.take().or(inner.accept);
                ends.translated |= inner.translated;
                ends.drop = ends.drop.take().or(inner.drop);
                ends.lost |= inner.lost;
                ends.because = ends.because.take().or(inner.because);
                let jump = matches!(verdict, Verdict::Jump(_));
                // Behind a `goto` it returns to who called this chain.
                ends.through |= inner.through && !jump;
                inner.through && jump
            }
        }
    }

    fn holds(&self, condition: &Condition) -> Truth {
        let fields = &condition.fields;
        let among =
            |keys: &[Key]| keys.iter().fold(Truth::No, |any, key| any.or(self.packet.matches(fields, key)));
        // A field that is missing fails a test, and its contrary too.
        let outside = |keys: &[Key]| self.packet.has(fields).and(!among(keys));
        let set = |name: &str| self.table.sets.get(name);
        match &condition.test {
            Test::Among(keys) => among(keys),
            Test::NotAmong(keys) => outside(keys),
            Test::In(name) => set(name).map_or(Truth::Unknown, |keys| among(keys)),
            Test::NotIn(name) => set(name).map_or(Truth::Unknown, |keys| outside(keys)),
            Test::Unreadable(_) => Truth::Unknown,
        }
    }
}
