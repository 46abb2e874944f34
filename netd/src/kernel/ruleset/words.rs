//! Words for rules, so that one reads like nft's own language.

use nftables::{
    expr::{CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix},
    stmt::{Counter, JumpTarget, Match, Operator, Statement},
};

pub(super) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn iif() -> Expression<'static> {
    meta(MetaKey::Iifname)
}

pub(super) fn oif() -> Expression<'static> {
    meta(MetaKey::Oifname)
}

pub(super) fn field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(super) fn concat(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}

pub(super) fn word(text: &'static str) -> Expression<'static> {
    Expression::String(text.into())
}

pub(super) fn port(number: u32) -> Expression<'static> {
    Expression::Number(number)
}

pub(super) fn prefix(address: &'static str, len: u32) -> Expression<'static> {
    Expression::Named(NamedExpression::Prefix(Prefix { addr: Box::new(word(address)), len }))
}

pub(super) fn matches(
    left: Expression<'static>,
    op: Operator,
    right: Expression<'static>,
) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

pub(super) fn within(left: Expression<'static>, set: &str) -> Statement<'static> {
    matches(left, Operator::EQ, Expression::String(format!("@{set}").into()))
}

pub(super) fn is(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    matches(left, Operator::EQ, right)
}

pub(super) fn one_of<const N: usize>(
    left: Expression<'static>,
    right: [Expression<'static>; N],
) -> Statement<'static> {
    let items = right.into_iter().map(nftables::expr::SetItem::Element).collect();
    matches(left, Operator::EQ, Expression::Named(NamedExpression::Set(items)))
}

/// ct state established,related
pub(super) fn answers() -> Statement<'static> {
    let state = Expression::Named(NamedExpression::CT(CT { key: "state".into(), family: None, dir: None }));
    matches(state, Operator::IN, Expression::List(["established", "related"].map(word).into()))
}

pub(super) fn counter() -> Statement<'static> {
    Statement::Counter(Counter::Anonymous(None))
}

pub(super) fn accept() -> Statement<'static> {
    Statement::Accept(None)
}

pub(super) fn discard() -> Statement<'static> {
    Statement::Drop(None)
}

pub(super) fn jump(target: &'static str) -> Statement<'static> {
    Statement::Jump(JumpTarget { target: target.into() })
}
