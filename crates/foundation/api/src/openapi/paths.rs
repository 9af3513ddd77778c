//! What can be done at which path: the operations of a kind and of its subresources, in version 3's words, and the
//! same in version 2's.

use serde_json::{Map, Value, json};

use crate::registry::{Kind, Subresource, builtin, group_path};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const DELETE: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "orphanDependents",
    "propagationPolicy",
];
const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const DELETE_COLLECTION: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];
const LOG: &[&str] = &[
    "container",
    "follow",
    "insecureSkipTLSVerifyBackend",
    "limitBytes",
    "previous",
    "sinceSeconds",
    "stream",
    "tailLines",
    "timestamps",
];

/// The types that the operations of a kind speak of, beside its own and its list.
pub(super) fn types(kind: &Kind) -> impl Iterator<Item = String> {
    let spoken = kind.subresources.iter().filter_map(|sub| body_of(kind, *sub));
    let options = ["DeleteOptions", "Patch", "Status", "WatchEvent"].into_iter().map(|name| format!("{META}.{name}"));
    spoken.chain(options)
}

/// Every path of a kind with what can be done there.
pub(super) fn of(kind: &Kind) -> Vec<(String, Value)> {
    let own = (kind.group, kind.version, kind.kind);
    let (object, list) = (kind.definition.to_owned(), format!("{}List", kind.definition));
    let collection = kind.path(kind.namespaced.then_some("{namespace}"));
    let one = format!("{collection}/{{name}}");
    let mut paths = vec![
        (collection.clone(), Item::default()),
        (one.clone(), Item::default()),
        (watched(kind, &collection), Item::default()),
        (watched(kind, &one), Item::default()),
    ];
    if kind.namespaced {
        let everywhere = kind.path(None);
        paths.push((everywhere.clone(), Item::default()));
        paths.push((watched(kind, &everywhere), Item::default()));
    }
    let event = format!("{META}.WatchEvent");
    for (verb, method, action, query, sent, answered, at) in [
        ("list", "get", "list", LIST, "", &list, &[0, 4][..]),
        ("create", "post", "post", WRITE, &object, &object, &[0]),
        ("deletecollection", "delete", "deletecollection", DELETE_COLLECTION, "DeleteOptions", &list, &[0]),
        ("get", "get", "get", &[], "", &object, &[1]),
        ("update", "put", "put", WRITE, &object, &object, &[1]),
        ("patch", "patch", "patch", PATCH, "Patch", &object, &[1]),
        ("delete", "delete", "delete", DELETE, "DeleteOptions", &object, &[1]),
        ("watch", "get", "watchlist", LIST, "", &event, &[2, 5]),
        ("watch", "get", "watch", LIST, "", &event, &[3]),
    ] {
        for place in at.iter().filter(|_| kind.allows(verb)) {
            if let Some((_, item)) = paths.get_mut(*place) {
                item.add(method, action, own, query, sent, answered);
            }
        }
    }
    for sub in kind.subresources {
        let path = format!("{one}/{}", sub.name());
        let item = subresource(kind, *sub);
        if *sub == Subresource::Proxy {
            paths.push((format!("{path}/{{path}}"), item.clone()));
        }
        paths.push((path, item));
    }
    if kind.custom.is_some() {
        paths.iter_mut().for_each(|(_, item)| item.forget_strategic());
    }
    paths.into_iter().filter(|(_, item)| !item.0.is_empty()).map(|(path, item)| item.at(path)).collect()
}

/// What discovery answers: the document that speaks of it, its path, and the name of the answer's type.
pub(super) fn discovery() -> Vec<(String, (String, Value), String)> {
    let meta = |name: &str| format!("{META}.{name}");
    let mut all = vec![
        ("api".to_owned(), meta("APIVersions")),
        ("apis".to_owned(), meta("APIGroupList")),
        ("version".to_owned(), "io.k8s.apimachinery.pkg.version.Info".to_owned()),
    ];
    for group in builtin().groups() {
        if !group.name.is_empty() {
            all.push((format!("apis/{}", group.name), meta("APIGroup")));
        }
        for version in &group.versions {
            let path = group_path(group.name, version).trim_start_matches('/').to_owned();
            all.push((path, meta("APIResourceList")));
        }
    }
    all.into_iter().map(|(path, answered)| (path.clone(), answer(&format!("/{path}/"), &answered), answered)).collect()
}

/// A path that is only read, and is about no object.
fn answer(path: &str, answered: &str) -> (String, Value) {
    let schema = json!({"$ref": format!("#/components/schemas/{answered}")});
    let content = json!({"application/json": {"schema": schema}});
    (path.to_owned(), json!({"get": {"responses": {"200": {"description": "OK", "content": content}}}}))
}

/// The old way of watching: `/api/v1/watch/pods`.
fn watched(kind: &Kind, path: &str) -> String {
    let root = group_path(kind.group, kind.version);
    format!("{root}/watch{}", path.strip_prefix(&root).unwrap_or(path))
}

/// The type that a subresource takes and gives; none when it speaks in bytes.
fn body_of(kind: &Kind, sub: Subresource) -> Option<String> {
    match sub {
        Subresource::Log | Subresource::Exec | Subresource::Attach | Subresource::PortForward | Subresource::Proxy => {
            None
        }
        Subresource::Scale => Some("io.k8s.api.autoscaling.v1.Scale".to_owned()),
        Subresource::Binding => Some("io.k8s.api.core.v1.Binding".to_owned()),
        Subresource::Eviction => Some("io.k8s.api.policy.v1.Eviction".to_owned()),
        Subresource::Token => Some("io.k8s.api.authentication.v1.TokenRequest".to_owned()),
        _ => Some(kind.definition.to_owned()),
    }
}

fn subresource(kind: &Kind, sub: Subresource) -> Item {
    let mut item = Item::default();
    let speaks = match sub {
        // The log is its pod's.
        Subresource::Log => (kind.group, kind.version, kind.kind),
        sub => kind.response_kind(sub),
    };
    let Some(object) = body_of(kind, sub) else {
        let (action, query): (_, &[&str]) = match sub {
            Subresource::Log => ("get", LOG),
            Subresource::Exec => ("connect", &["command", "container", "stderr", "stdin", "stdout", "tty"]),
            Subresource::Attach => ("connect", &["container", "stderr", "stdin", "stdout", "tty"]),
            Subresource::PortForward => ("connect", &["ports"]),
            _ => ("connect", &["path"]),
        };
        for (verb, method) in
            [("get", "get"), ("create", "post"), ("update", "put"), ("patch", "patch"), ("delete", "delete")]
        {
            if sub.verbs().contains(&verb) {
                item.add(method, action, speaks, query, "", "");
            }
        }
        return item;
    };
    for (verb, method, query, sent) in [
        ("get", "get", &[][..], ""),
        ("create", "post", WRITE, object.as_str()),
        ("update", "put", WRITE, &object),
        ("patch", "patch", PATCH, "Patch"),
    ] {
        if sub.verbs().contains(&verb) {
            item.add(method, method, speaks, query, sent, &object);
        }
    }
    item
}

/// The operations at one path, by method.
#[derive(Clone, Default)]
struct Item(Map<String, Value>);

impl Item {
    /// `sent` and `answered` name types; without one it is bytes, or nothing.
    fn add(
        &mut self,
        method: &str,
        action: &str,
        (group, version, kind): (&str, &str, &str),
        query: &[&str],
        sent: &str,
        answered: &str,
    ) {
        let schema = |name: &str| match name {
            "" => json!({"type": "string"}),
            name if name.contains('.') => json!({"$ref": format!("#/components/schemas/{name}")}),
            name => json!({"$ref": format!("#/components/schemas/{META}.{name}")}),
        };
        let parameters: Vec<Value> = query.iter().map(|name| parameter(name, "query")).collect();
        let answer = if answered.is_empty() { "*/*" } else { "application/json" };
        let mut operation = json!({
            "parameters": parameters,
            "responses": {"200": {"description": "OK", "content": {answer: {"schema": schema(answered)}}}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        if !sent.is_empty() {
            let media: &[&str] = match sent {
                "Patch" => &[
                    "application/apply-patch+yaml",
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    STRATEGIC,
                ],
                _ => &["application/json"],
            };
            let content: Map<String, Value> =
                media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema(sent)}))).collect();
            operation["requestBody"] = json!({"content": content});
        }
        self.0.insert(method.to_owned(), operation);
    }

    /// Clients send a strategic merge patch where one is announced, and custom kinds take none.
    fn forget_strategic(&mut self) {
        let content = self.0.get_mut("patch").and_then(|patch| patch.pointer_mut("/requestBody/content"));
        if let Some(content) = content.and_then(Value::as_object_mut) {
            content.shift_remove(STRATEGIC);
        }
    }

    /// The finished item, with the parameters that its path itself has.
    fn at(mut self, path: String) -> (String, Value) {
        let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let mut parameters: Vec<Value> = names.map(|name| parameter(name, "path")).collect();
        let proxied = self.0.values().all(|operation| operation["x-kubernetes-action"] == "connect");
        if !proxied {
            parameters.push(parameter("pretty", "query"));
        }
        self.0.insert("parameters".to_owned(), json!(parameters));
        (path, Value::Object(self.0))
    }
}

fn parameter(name: &str, place: &str) -> Value {
    let kind = match name {
        "allowWatchBookmarks"
        | "follow"
        | "force"
        | "insecureSkipTLSVerifyBackend"
        | "orphanDependents"
        | "previous"
        | "sendInitialEvents"
        | "stderr"
        | "stdin"
        | "stdout"
        | "timestamps"
        | "tty"
        | "watch"
        | "ignoreStoreReadErrorWithClusterBreakingPotential" => "boolean",
        "gracePeriodSeconds" | "limit" | "limitBytes" | "ports" | "sinceSeconds" | "tailLines" | "timeoutSeconds" => {
            "integer"
        }
        _ => "string",
    };
    let mut parameter = json!({"name": name, "in": place, "schema": {"type": kind, "uniqueItems": true}});
    if place == "path" {
        parameter["required"] = json!(true);
    }
    parameter
}

/// An item in the words of version 2.
pub(super) fn in_version_2(mut item: Value) -> Value {
    let parameters = |list: &mut Value| {
        for parameter in list.as_array_mut().into_iter().flatten() {
            let kind = parameter["schema"]["type"].take();
            let mut plain =
                json!({"name": parameter["name"], "in": parameter["in"], "type": kind, "uniqueItems": true});
            if parameter["required"] == true {
                plain["required"] = json!(true);
            }
            *parameter = plain;
        }
    };
    let reference = |content: &Value| {
        let first = content.as_object().and_then(|media| media.values().next());
        let name = first.and_then(|media| media["schema"]["$ref"].as_str()).and_then(|path| path.rsplit('/').next());
        name.map(|name| json!({"$ref": format!("#/definitions/{name}")}))
    };
    for (method, operation) in item.as_object_mut().into_iter().flatten() {
        if method == "parameters" {
            parameters(operation);
            continue;
        }
        if let Some(list) = operation.get_mut("parameters") {
            parameters(list);
        }
        let sent = operation.as_object_mut().and_then(|operation| operation.remove("requestBody"));
        if let (Some(sent), Some(list)) = (sent, operation.get_mut("parameters").and_then(Value::as_array_mut))
            && let Some(schema) = reference(&sent["content"])
        {
            list.push(json!({"name": "body", "in": "body", "schema": schema}));
        }
        let mut answer = json!({"description": "OK"});
        if let Some(schema) = reference(&operation["responses"]["200"]["content"]) {
            answer["schema"] = schema;
        }
        operation["responses"] = json!({"200": answer});
    }
    item
}
