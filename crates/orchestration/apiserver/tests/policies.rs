//! Admission policies, with kubectl.
#![allow(clippy::unwrap_used)]

mod harness;

use std::time::{Duration, Instant};

use dhow_apiserver::{AccessConfig, AuditConfig, AuditFile, AuditPolicy, UserInfo};
use harness::Cluster;
use serde_json::{Value, json};

impl Cluster {
    async fn apply(&self, manifest: &str) -> Result<String, String> {
        self.run("admin", &["apply", "-f", "-"], manifest).await
    }
}

/// A validating policy about deployments, with a binding of the same name.
fn validating(name: &str, spec: &str, binding: &str) -> String {
    format!(
        "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: {name}}}
spec:
  matchConstraints:
    resourceRules: [{{operations: [CREATE, UPDATE], apiGroups: [apps], apiVersions: [v1], resources: [deployments]}}]
{spec}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: {name}}}
spec: {{policyName: {name}, {binding}}}
"
    )
}

fn deployment(name: &str, namespace: &str, replicas: u32) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{containers: [{{name: c, image: i}}]}}}}
"
    )
}

/// Limits come from a ConfigMap; the policy changes while the server runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_with_parameters_refuses() {
    let cluster = Cluster::start().await;
    let limit = |most: u32| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: limits, namespace: default}}\ndata: {{most: '{most}'}}\n"
        )
    };
    cluster.apply(&limit(5)).await.unwrap();
    let spec = "  paramKind: {apiVersion: v1, kind: ConfigMap}
  variables:
    - {name: most, expression: 'int(params.data.most)'}
    - {name: broken, expression: 'object.nothing.at.all'}
  validations:
    - expression: object.spec.replicas <= variables.most
      messageExpression: \"'%d replicas are more than %d'.format([object.spec.replicas, variables.most])\"
    - {expression: \"object.metadata.name != 'secret'\", reason: Forbidden, message: that name is taken}
    - {expression: \"request.operation in ['CREATE', 'UPDATE'] && request.userInfo.username == 'system:admin'\"}
    - {expression: \"authorizer.group('apps').resource('deployments').namespace('default').check('create').allowed()\"}
    - {expression: \"namespaceObject.metadata.name == 'default' && oldObject == null || request.operation == 'UPDATE'\"}";
    let reference =
        "paramRef: {name: limits, namespace: default, parameterNotFoundAction: Deny}, validationActions: [Deny]";
    cluster.apply(&validating("replicas", spec, reference)).await.unwrap();

    let refused = cluster.apply(&deployment("web", "default", 6)).await.unwrap_err();
    let expected = "The deployments \"web\" is invalid: : ValidatingAdmissionPolicy 'replicas' with binding 'replicas' denied \
                    request: 6 replicas are more than 5";
    assert!(refused.contains(expected), "{refused}");
    cluster.apply(&deployment("web", "default", 5)).await.unwrap();
    let refused = cluster.apply(&deployment("secret", "default", 1)).await.unwrap_err();
    assert!(refused.contains("denied request: that name is taken"), "{refused}");
    // Every way to write goes through, also a dry run.
    for args in [
        &["patch", "deployment", "web", "-p", "{\"spec\": {\"replicas\": 7}}"][..],
        &["patch", "deployment", "web", "-p", "{\"spec\": {\"replicas\": 7}}", "--dry-run=server"],
    ] {
        let refused = cluster.run("admin", args, "").await.unwrap_err();
        assert!(refused.contains("7 replicas are more than 5"), "{refused}");
    }
    let refused = cluster.run("admin", &["apply", "--server-side", "-f", "-"], &deployment("web", "default", 8)).await;
    assert!(refused.unwrap_err().contains("8 replicas are more than 5"));
    let object = serde_json::json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "raw"}, "spec": {
        "replicas": 9, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let (code, status) = cluster.json("POST", path, "application/json", &object).await;
    assert_eq!((code, status["reason"].as_str()), (422, Some("Invalid")), "{status}");
    assert!(status["details"]["causes"][0]["message"].as_str().unwrap().contains("9 replicas"), "{status}");

    // The parameters change, then go away.
    cluster.apply(&limit(10)).await.unwrap();
    cluster.apply(&deployment("web", "default", 6)).await.unwrap();
    cluster.kubectl(&["delete", "configmap", "limits"]).await;
    let refused = cluster.apply(&deployment("web", "default", 1)).await.unwrap_err();
    let expected =
        "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    assert!(refused.contains(expected), "{refused}");

    // The policy changes, then goes away.
    let spec = "  validations: [{expression: \"object.spec.replicas == 2\", message: exactly two}]";
    cluster.apply(&validating("replicas", spec, "validationActions: [Deny]")).await.unwrap();
    assert!(cluster.apply(&deployment("web", "default", 3)).await.unwrap_err().contains("exactly two"));
    cluster.kubectl(&["delete", "validatingadmissionpolicy", "replicas"]).await;
    cluster.apply(&deployment("web", "default", 3)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_warn_select_and_fail_as_they_say() {
    let cluster = Cluster::start().await;
    cluster
        .apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: strict, labels: {policy: strict}}\n")
        .await
        .unwrap();
    let spec = "  validations: [{expression: \"object.spec.replicas < 3\", message: few are enough}]";
    cluster.apply(&validating("warns", spec, "validationActions: [Warn, Audit]")).await.unwrap();
    let create = object_file(&cluster, &deployment("many", "default", 4));
    let output = std::process::Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(cluster.folder.path().join("admin.kubeconfig"))
        .args(["create", "-f", &create])
        .env("NO_PROXY", "*")
        .output();
    let output = output.unwrap();
    assert!(output.status.success());
    let warned = String::from_utf8(output.stderr).unwrap();
    let expected =
        "Warning: Validation failed for ValidatingAdmissionPolicy 'warns' with binding 'warns': few are enough";
    assert!(warned.contains(expected), "{warned}");

    // Only namespaces with the label, not the excluded, not where a condition says no.
    let binding = "validationActions: [Deny], matchResources: {namespaceSelector: {matchLabels: {policy: strict}}}";
    let spec = "  matchConditions: [{name: web, expression: \"object.metadata.name.startsWith('web')\"}]
  validations: [{expression: \"object.spec.replicas < 3\", message: strict}]";
    cluster.apply(&validating("strict", spec, binding)).await.unwrap();
    cluster.apply(&deployment("web", "default", 4)).await.unwrap();
    cluster.apply(&deployment("other", "strict", 4)).await.unwrap();
    assert!(cluster.apply(&deployment("web", "strict", 4)).await.unwrap_err().contains("denied request: strict"));

    // An expression that fails: the failure policy decides.
    let spec =
        |policy: &str| format!("  failurePolicy: {policy}\n  validations: [{{expression: 'object.spec.nothing > 1'}}]");
    cluster.apply(&validating("fails", &spec("Fail"), "validationActions: [Deny]")).await.unwrap();
    let refused = cluster.apply(&deployment("x", "default", 1)).await.unwrap_err();
    let expected = "ValidatingAdmissionPolicy 'fails' with binding 'fails' denied request: expression 'object.spec.nothing > 1' \
                    resulted in error: no such key: nothing";
    assert!(refused.contains(expected), "{refused}");
    cluster.apply(&validating("fails", &spec("Ignore"), "validationActions: [Deny]")).await.unwrap();
    cluster.apply(&deployment("x", "default", 1)).await.unwrap();

    // What does not compile is refused at once.
    let broken = validating("broken", "  validations: [{expression: 'object.spec >'}]", "validationActions: [Deny]");
    let refused = cluster.apply(&broken).await.unwrap_err();
    assert!(
        refused.contains("spec.validations[0].expression: Invalid value: \"object.spec >\": compilation failed"),
        "{refused}"
    );
}

fn object_file(cluster: &Cluster, manifest: &str) -> String {
    let path = cluster.folder.path().join("object.yaml");
    std::fs::write(&path, manifest).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_are_judged_and_hostile_expressions_bounded() {
    let cluster = Cluster::start().await;
    let policy = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: keep}
spec:
  matchConstraints:
    resourceRules: [{operations: [DELETE], apiGroups: [''], apiVersions: ['*'], resources: [configmaps]}]
  validations: [{expression: \"object == null && !has(oldObject.metadata.labels)\", message: labelled things stay}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: keep}
spec: {policyName: keep, validationActions: [Deny]}
";
    cluster.apply(policy).await.unwrap();
    cluster.kubectl(&["create", "configmap", "a"]).await;
    cluster.kubectl(&["create", "configmap", "b"]).await;
    cluster.kubectl(&["label", "configmap", "b", "x=y"]).await;
    cluster.kubectl(&["delete", "configmap", "a"]).await;
    let refused = cluster.run("admin", &["delete", "configmap", "b"], "").await.unwrap_err();
    assert!(
        refused.contains("The configmaps \"b\" is invalid") && refused.contains("labelled things stay"),
        "{refused}"
    );

    let all = "[1,2,3,4,5,6,7,8,9,0]";
    let nested = (0..10).fold("true".to_owned(), |inner, depth| format!("{all}.all(x{depth}, {inner})"));
    let spec = format!("  validations: [{{expression: '{nested}'}}, {{expression: '{nested}'}}]");
    cluster.apply(&validating("hostile", &spec, "validationActions: [Deny]")).await.unwrap();
    let begun = std::time::Instant::now();
    let refused = cluster.apply(&deployment("x", "default", 1)).await.unwrap_err();
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    assert!(refused.contains("operation cancelled: actual cost limit exceeded"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating_policies_change_what_is_written() {
    let cluster = Cluster::start().await;
    let policy = |name: &str, again: &str, mutation: &str| {
        format!(
            "
apiVersion: admissionregistration.k8s.io/v1beta1
kind: MutatingAdmissionPolicy
metadata: {{name: {name}}}
spec:
  reinvocationPolicy: {again}
  matchConstraints:
    resourceRules: [{{operations: [CREATE], apiGroups: [''], apiVersions: [v1], resources: [pods]}}]
{mutation}
---
apiVersion: admissionregistration.k8s.io/v1beta1
kind: MutatingAdmissionPolicyBinding
metadata: {{name: {name}}}
spec: {{policyName: {name}}}
"
        )
    };
    let label = "  mutations:
    - patchType: ApplyConfiguration
      applyConfiguration:
        expression: >
          Object{metadata: Object.metadata{labels: {'containers': string(object.spec.containers.size())}},
            spec: Object.spec{containers: object.spec.containers.map(c,
              Object.spec.containers{name: c.name, env: [Object.spec.containers.env{name: 'OWNER', value: request.userInfo.username}]})}}";
    let sidecar = "  matchConditions: [{name: once, expression: \"!object.spec.containers.exists(c, c.name == 'side')\"}]
  mutations:
    - patchType: JSONPatch
      jsonPatch:
        expression: >
          [JSONPatch{op: 'add', path: '/spec/containers/-', value: Object.spec.containers{name: 'side', image: 'side:1'}},
           JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a.io/b'), value: 'c'}]";
    // The first by name runs first, and once more after the second.
    cluster.apply(&policy("a-label", "IfNeeded", label)).await.unwrap();
    cluster.apply(&policy("b-sidecar", "Never", sidecar)).await.unwrap();
    cluster.kubectl(&["create", "serviceaccount", "default"]).await;
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: default}\nspec: {containers: [{name: c, image: i, env: [{name: X, value: z}]}]}\n";
    cluster.apply(pod).await.unwrap();
    let shown = "jsonpath={.metadata.labels.containers} {.metadata.labels.a\\.io/b} {range .spec.containers[*]}{.name}:{.image}:\
                 {.imagePullPolicy}:{.env[*].name} {end}";
    let shown = cluster.kubectl(&["get", "pod", "p", "-o", shown]).await;
    assert_eq!(shown.trim(), "2 c.io c:i:Always:X OWNER side:side:1:IfNotPresent:OWNER".replace("c.io", "c"));

    let broken = "  mutations: [{patchType: JSONPatch, jsonPatch: {expression: \"[JSONPatch{op: 'remove', path: '/spec/none'}]\"}}]";
    cluster.apply(&policy("c-broken", "Never", broken)).await.unwrap();
    let refused = cluster.apply(&pod.replace("name: p,", "name: q,")).await.unwrap_err();
    assert!(refused.contains("policy 'c-broken' with binding 'c-broken' denied request: "), "{refused}");
    let ignoring = format!("  failurePolicy: Ignore\n{broken}");
    cluster.apply(&policy("c-broken", "Never", &ignoring)).await.unwrap();
    cluster.apply(&pod.replace("name: p,", "name: q,")).await.unwrap();
    assert!(cluster.kubectl(&["get", "mutatingadmissionpolicies"]).await.contains("MUTATIONS"));
}

/// Rules in a definition's schema, and a policy whose parameters are of that kind.
#[tokio::test(flavor = "multi_thread")]
async fn custom_kinds_have_rules_and_are_parameters() {
    let cluster = Cluster::start().await;
    let definition = |rule: &str| {
        format!(
            "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: limits.x.io}}
spec:
  group: x.io
  scope: Namespaced
  names: {{plural: limits, singular: limit, kind: Limit}}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            x-kubernetes-validations:
            - {{rule: '{rule}', messageExpression: \"'least %d is over most %d'.format([self.least, self.most])\"}}
            - {{rule: 'self.most >= oldSelf.most', message: may only grow, fieldPath: .most, reason: FieldValueForbidden}}
            properties: {{least: {{type: integer, default: 0}}, most: {{type: integer}}}}
"
        )
    };
    let refused = cluster.apply(&definition("self.least <= self.moist")).await.unwrap_err();
    let expected =
        "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: ";
    assert!(refused.contains(expected) && refused.contains("undefined field 'moist'"), "{refused}");
    cluster.apply(&definition("self.least <= self.most")).await.unwrap();
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/limits.x.io"]).await;
    let limit = |least: u32, most: u32| {
        format!(
            "apiVersion: x.io/v1\nkind: Limit\nmetadata: {{name: one, namespace: default}}\nspec: {{least: {least}, most: {most}}}\n"
        )
    };
    let refused = cluster.apply(&limit(5, 3)).await.unwrap_err();
    assert!(
        refused.contains("The Limit \"one\" is invalid: spec: Invalid value: \"object\": least 5 is over most 3"),
        "{refused}"
    );
    cluster.apply(&limit(1, 3)).await.unwrap();
    let refused = cluster.apply(&limit(1, 2)).await.unwrap_err();
    assert!(refused.contains("spec.most: Forbidden: may only grow"), "{refused}");

    let spec = "  paramKind: {apiVersion: x.io/v1, kind: Limit}
  validations: [{expression: 'object.spec.replicas <= params.spec.most', message: over the limit}]";
    let reference = "paramRef: {selector: {}, parameterNotFoundAction: Allow}, validationActions: [Deny]";
    cluster.apply(&validating("limited", spec, reference)).await.unwrap();
    assert!(cluster.apply(&deployment("web", "default", 4)).await.unwrap_err().contains("over the limit"));
    cluster.apply(&limit(1, 4)).await.unwrap();
    cluster.apply(&deployment("web", "default", 4)).await.unwrap();
}

/// The last audit event about a deployment.
async fn audited(path: &std::path::Path, name: &str) -> Value {
    for _ in 0..200 {
        let text = std::fs::read_to_string(path).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut events = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let about = |event: &Value| event["objectRef"]["name"] == name && event["stage"] == "ResponseComplete";
        if let Some(event) = events.rfind(about) {
            return event;
        }
        // The log is a file that another thread writes; nothing tells of it.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("no event about {name}: {}", std::fs::read_to_string(path).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_write_into_the_audit_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let text = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, verbs: [create]}]}";
    let audit =
        AuditConfig { policy: AuditPolicy::parse(text).unwrap(), file: Some(AuditFile::new(&path)), webhook: None };
    let cluster = Cluster::start_with(AccessConfig { audit: Some(audit), ..AccessConfig::default() }).await;
    let spec = "  validations:
    - {expression: 'object.spec.replicas > 0', message: one at least}
    - {expression: 'object.spec.replicas < 3', message: few are enough}
  auditAnnotations:
    - {key: size, valueExpression: \"object.spec.replicas > 3 ? 'replicas: ' + string(object.spec.replicas) : ''\"}
    - {key: who, valueExpression: 'request.userInfo.username'}";
    cluster.apply(&validating("few", spec, "validationActions: [Audit]")).await.unwrap();
    cluster.apply(&deployment("many", "default", 4)).await.unwrap();
    let annotations = audited(&path, "many").await["annotations"].clone();
    let failure = annotations["validation.policy.admission.k8s.io/validation_failure"].as_str().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(failure).unwrap(),
        json!([{"message": "few are enough", "policy": "few", "binding": "few", "expressionIndex": 1,
            "validationActions": ["Audit"]}])
    );
    assert_eq!(annotations["few/size"], "replicas: 4");
    assert_eq!(annotations["few/who"], "system:admin");
    cluster.apply(&deployment("right", "default", 2)).await.unwrap();
    let annotations = audited(&path, "right").await["annotations"].clone();
    assert!(annotations["validation.policy.admission.k8s.io/validation_failure"].is_null(), "{annotations}");
    assert!(annotations["few/size"].is_null() && annotations["few/who"].is_string(), "{annotations}");

    // An annotation that cannot be made refuses, unless failures are ignored.
    let spec = |policy: &str| {
        format!("  failurePolicy: {policy}\n  auditAnnotations: [{{key: k, valueExpression: 'object.nothing.at'}}]")
    };
    cluster.apply(&validating("few", &spec("Fail"), "validationActions: [Audit]")).await.unwrap();
    let refused = cluster.apply(&deployment("third", "default", 1)).await.unwrap_err();
    assert!(refused.contains("denied request: expression 'object.nothing.at' resulted in error"), "{refused}");
    cluster.apply(&validating("few", &spec("Ignore"), "validationActions: [Audit]")).await.unwrap();
    cluster.apply(&deployment("third", "default", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_says_what_does_not_fit() {
    let cluster = Cluster::start().await;
    let spec = "  validations: [{expression: 'object.replicas > 1'}, {expression: 'object.spec.replicas > 1'}]";
    cluster.apply(&validating("typed", spec, "validationActions: [Deny]")).await.unwrap();
    cluster
        .kubectl(&[
            "wait",
            "validatingadmissionpolicy/typed",
            "--for=jsonpath={.status.observedGeneration}=1",
            "--timeout=20s",
        ])
        .await;
    let warnings = "jsonpath={range .status.typeChecking.expressionWarnings[*]}{.fieldRef} {.warning}{end}";
    let shown = cluster.kubectl(&["get", "validatingadmissionpolicy", "typed", "-o", warnings]).await;
    let expected =
        "spec.validations[0].expression apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'";
    assert!(shown.starts_with(expected) && !shown.contains("validations[1]"), "{shown}");
    let described = cluster.kubectl(&["describe", "validatingadmissionpolicy", "typed"]).await;
    assert!(
        described.contains("Expression Warnings:") && described.contains("undefined field 'replicas'"),
        "{described}"
    );

    let spec = "  validations: [{expression: 'object.spec.replicas > 1'}]";
    cluster.apply(&validating("typed", spec, "validationActions: [Deny]")).await.unwrap();
    cluster
        .kubectl(&[
            "wait",
            "validatingadmissionpolicy/typed",
            "--for=jsonpath={.status.observedGeneration}=2",
            "--timeout=20s",
        ])
        .await;
    assert_eq!(
        cluster.kubectl(&["get", "validatingadmissionpolicy", "typed", "-o", "jsonpath={.status.typeChecking}"]).await,
        "{}"
    );
    let columns = cluster.kubectl(&["get", "validatingadmissionpolicies,validatingadmissionpolicybindings"]).await;
    for title in ["VALIDATIONS", "PARAMKIND", "AGE", "POLICYNAME", "PARAMREF"] {
        assert!(columns.contains(title), "{columns}");
    }
}

/// One thread serves everybody here: what is evaluated long must not be in its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_policy_that_takes_long_holds_up_nobody_else() {
    let cluster = Cluster::start().await;
    let nested = "lists.range(300).all(x, lists.range(300).all(y, x + y >= 0))";
    let validations: String = (0..6).map(|_| format!("\n    - {{expression: '{nested}'}}")).collect();
    cluster
        .apply(&validating("slow", &format!("  validations:{validations}"), "validationActions: [Deny]"))
        .await
        .unwrap();
    let body = |name: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    };
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let cluster = std::sync::Arc::new(cluster);
    let begun = Instant::now();
    let writes = (0..4).map(|i| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let (code, answer) = cluster.json("POST", path, "application/json", &body(&format!("d{i}"))).await;
            assert_eq!(code, 201, "{answer}");
        })
    });
    let writes: Vec<_> = writes.collect();
    let reading = cluster.clone();
    let reads = tokio::spawn(async move {
        let mut times = Vec::new();
        for _ in 0..100 {
            let begun = Instant::now();
            let get = http::Request::get("/api/v1/namespaces/default").body(bytes::Bytes::new()).unwrap();
            assert_eq!(reading.send(UserInfo::new("admin", &["system:masters"]), get).await.0, 200);
            times.push(begun.elapsed());
            tokio::task::yield_now().await;
        }
        times.sort();
        times
    });
    let times = reads.await.unwrap();
    let read = begun.elapsed();
    for write in writes {
        write.await.unwrap();
    }
    let all = begun.elapsed();
    println!("100 reads in {read:?}, the slowest {:?}; the writes in {all:?}", times[99]);
    assert!(times[90] < all / 4, "{times:?} beside writes of {all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_could_cost_too_much_are_refused() {
    let cluster = Cluster::start().await;
    let definition = |limit: &str, rule: &str| {
        format!(
            "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: lists.x.io}}
spec:
  group: x.io
  scope: Namespaced
  names: {{plural: lists, singular: list, kind: Liste, listKind: ListeList}}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          names:
            type: array
            {limit}
            items: {{type: string, maxLength: 64}}
            x-kubernetes-validations: [{{rule: '{rule}'}}]
"
        )
    };
    let rule = "self.all(x, self.exists_one(y, x == y))";
    let refused = cluster.apply(&definition("", rule)).await.unwrap_err();
    let expected = "spec.versions[0].schema.openAPIV3Schema.properties[names].x-kubernetes-validations[0].rule: Forbidden: \
                    estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule(s), or adding \
                    maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
    assert!(refused.contains(expected), "{refused}");
    cluster.apply(&definition("maxItems: 50", rule)).await.unwrap();
    let refused = cluster.apply(&definition("", rule)).await.unwrap_err();
    assert!(refused.contains("estimated rule cost exceeds budget"), "{refused}");
}
