//! Stands in front of all services: lets a request in, or answers it.

use super::{Access, Caller, Role};
use crate::{
    audit::{Audit, Call},
    bucket::Buckets,
    fault::{Fault, Kind},
    name::printable,
    socket::Peer,
};
use http::{Request, Response};
use std::{
    collections::HashMap,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

/// Services of tonic's own, which everybody with a role may ask.
const COMMON: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/"];

/// What is asked of the caller of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    role: Role,
    audited: bool,
}

/// Who may call what. Clones share it.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    access: Access,
    audit: Audit,
    rules: HashMap<&'static str, Rule>,
    /// What is left to each user of the changes that it may make.
    changes: Mutex<Buckets>,
}

impl Gate {
    /// `methods` are the path, the least role and whether it is audited, of each method.
    ///
    /// # Errors
    /// INTERNAL if a role is none.
    pub fn new(
        access: Access,
        audit: Audit,
        methods: impl IntoIterator<Item = (&'static str, &'static str, bool)>,
    ) -> Result<Self, Fault> {
        let rules = methods
            .into_iter()
            .map(|(path, role, audited)| Ok((path, Rule { role: role.parse()?, audited })))
            .collect::<Result<_, Fault>>()?;
        Ok(Self(Arc::new(Inner { access, audit, rules, changes: Mutex::default() })))
    }

    /// The uid that is an admin besides root; 0 if none is.
    pub(crate) fn admin_uid(&self) -> u32 {
        self.0.access.admin_uid()
    }

    /// To be put around the services.
    #[must_use]
    pub fn layer(&self) -> GateLayer {
        GateLayer(self.clone())
    }

    /// A method without a rule is an admin's.
    fn rule(&self, path: &str) -> Rule {
        if let Some(rule) = self.0.rules.get(path) {
            return *rule;
        }
        let common = COMMON.iter().any(|service| path.starts_with(service));
        Rule { role: if common { Role::Viewer } else { Role::Admin }, audited: false }
    }

    /// The caller of a method, if it may.
    async fn admit(&self, peer: Option<&Peer>, needed: Role, method: &str) -> Result<Caller, Refused> {
        let refused = |role, fault| Refused { role, fault };
        // No credentials are no caller.
        let peer = peer.ok_or_else(|| refused(None, super::unknown()))?;
        let access = &self.0.access;
        let caller = access.caller(peer).await.map_err(|fault| refused(None, fault))?;
        let role = caller.as_ref().map(|caller| caller.rights.role);
        if let Some(caller) = caller.filter(|caller| caller.rights.role >= needed) {
            return Ok(caller);
        }
        let is = role.map_or_else(|| "has no role here".to_owned(), |role| format!("is a {role}"));
        let fault = Fault::new(
            Kind::PermissionDenied,
            "ROLE_NEEDED",
            format!("{} needs the role `{needed}`, and uid {} {is}", printable(method), peer.uid),
        )
        .meta("needed_role", needed)
        .hint(format!(
            "root can grant it to the user, or to a group of theirs, in {}",
            access.file().display()
        ));
        Err(refused(role, fault))
    }
}

/// Whoever changes things without end would push older lines out of the audit log, and older events. Each change counts,
/// also one that is refused.
fn pace(gate: &Gate, caller: &Caller) -> Result<(), Fault> {
    let Some(pace) = caller.rights.quota.changes() else { return Ok(()) };
    let mut buckets = gate.0.changes.lock().unwrap_or_else(PoisonError::into_inner);
    buckets.take(Some(caller.uid), pace, Instant::now()).map_err(|wait| {
        // Waiting a little longer than that is of use, a little less is not.
        let wait = wait.max(Duration::from_millis(1));
        Fault::new(
            Kind::ResourceExhausted,
            "TOO_MANY_CHANGES",
            format!(
                "uid {} makes more changes than {} at once and {} a second",
                caller.uid, pace.burst, pace.per_second
            ),
        )
        .retry_after(wait)
        .hint(format!("try again in {} ms", wait.as_millis()))
        .hint(format!("root can raise `changes_per_second` in a quota in {}", caller.file.display()))
    })
}

struct Refused {
    role: Option<Role>,
    fault: Fault,
}

/// Puts the gate around services.
#[derive(Clone, Debug)]
pub struct GateLayer(Gate);

impl<S> Layer<S> for GateLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, gate: self.0.clone() }
    }
}

/// Services behind the gate.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    gate: Gate,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The one that is ready, not its clone.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        let gate = self.gate.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let rule = gate.rule(&path);
            let peer = request.extensions().get::<Option<Peer>>().cloned().flatten();
            let method = path.rsplit('/').next().unwrap_or_default();
            let mut call = Call::begin(&gate.0.audit, peer.as_ref().map(|peer| peer.uid), &path);
            let caller = match gate.admit(peer.as_ref(), rule.role, method).await {
                Ok(caller) => caller,
                Err(refused) => {
                    call.by(refused.role);
                    let status = Status::from(refused.fault);
                    call.end(&status, "", true);
                    return Ok(status.into_http());
                }
            };
            call.by(Some(caller.rights.role));
            if rule.audited
                && let Err(fault) = pace(&gate, &caller)
            {
                let status = Status::from(fault);
                call.end(&status, "", true);
                return Ok(status.into_http());
            }
            request.extensions_mut().insert(caller.clone());
            // Whoever goes away before the answer leaves a line all the same.
            call.expect_an_end(rule.audited.then(|| caller.clone()));
            let response = inner.call(request).await?;
            // A stream that began is answered with its head: how it ends is not part of it.
            let status = Status::from_header_map(response.headers()).unwrap_or_else(|| Status::ok(""));
            call.end(&status, caller.object(), rule.audited);
            Ok(response)
        })
    }
}
