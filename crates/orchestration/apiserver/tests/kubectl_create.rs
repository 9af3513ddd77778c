//! Every generator of `kubectl create`, with the oldest and the newest kubectl: what it makes, and that a dry run makes
//! nothing.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Cluster;

/// The generator's line, and then what is said of the object: its resource, a JSON path and the text there.
const GENERATORS: &[(&str, &str, &str, &str)] = &[
    ("namespace n", "namespace n", "{.status.phase}", "Active"),
    (
        "clusterrole cr --verb=get,list --resource=pods,deployments.apps",
        "clusterrole cr",
        "{.rules}",
        r#"[{"apiGroups":[""],"resources":["pods"],"verbs":["get","list"]},{"apiGroups":["apps"],"resources":["deployments"],"verbs":["get","list"]}]"#,
    ),
    (
        "clusterrole urls --verb=get --non-resource-url=/x/*",
        "clusterrole urls",
        "{.rules[0].nonResourceURLs[0]}",
        "/x/*",
    ),
    (
        "clusterrole sum --aggregation-rule=a=b",
        "clusterrole sum",
        "{.aggregationRule.clusterRoleSelectors[0].matchLabels.a}",
        "b",
    ),
    (
        "clusterrolebinding crb --clusterrole=view --user=jane --group=dev --serviceaccount=default:sa",
        "clusterrolebinding crb",
        "{.roleRef.name}{range .subjects[*]} {.kind}/{.name}{end}",
        "view User/jane Group/dev ServiceAccount/sa",
    ),
    (
        "role r --verb=get --resource=pods/log --resource-name=p",
        "role r",
        "{.rules[0].resources[0]} {.rules[0].resourceNames[0]}",
        "pods/log p",
    ),
    (
        "rolebinding rb --clusterrole=view --serviceaccount=default:sa",
        "rolebinding rb",
        "{.subjects[0].namespace}",
        "default",
    ),
    ("configmap cm --from-literal=a=b --from-file=f=FOLDER/ca.pem", "configmap cm", "{.data.a}", "b"),
    ("configmap env --from-env-file=FOLDER/env", "configmap env", "{.data.KEY}", "value"),
    ("configmap hash --from-literal=a=b --append-hash", "configmap", "{.items[*].metadata.name}", "hash-"),
    ("secret generic g --from-literal=a=b --type=x.io/y", "secret g", "{.type} {.data.a}", "x.io/y Yg=="),
    ("secret tls t --cert=FOLDER/admin.pem --key=FOLDER/admin.key", "secret t", "{.type}", "kubernetes.io/tls"),
    (
        "secret docker-registry d --docker-server=r.example.com --docker-username=u --docker-password=p",
        "secret d",
        "{.type}",
        "kubernetes.io/dockerconfigjson",
    ),
    ("serviceaccount sa", "serviceaccount sa", "{.metadata.name}", "sa"),
    (
        "deployment dep --image=i:1 --replicas=2 --port=80",
        "deployment dep",
        "{.spec.replicas} {.spec.template.spec.containers[0].ports[0].containerPort}",
        "2 80",
    ),
    ("job j --image=i -- echo hi", "job j", "{.spec.template.spec.containers[0].command}", r#"["echo","hi"]"#),
    ("cronjob cj --image=i --schedule=*/5~*~*~*~* --restart=Never", "cronjob cj", "{.spec.schedule}", "*/5 * * * *"),
    ("job once --from=cronjob/cj", "job once", "{.metadata.ownerReferences[0].name}", "cj"),
    (
        "ingress in --class=c --rule=h.example.com/p*=dep:80,tls=t --annotation=a=b",
        "ingress in",
        "{.spec.ingressClassName} {.spec.rules[0].http.paths[0].pathType} {.spec.tls[0].secretName}",
        "c Prefix t",
    ),
    ("poddisruptionbudget p --min-available=1 --selector=app=x", "pdb p", "{.spec.minAvailable}", "1"),
    ("pdb half --max-unavailable=50% --selector=app=x", "pdb half", "{.spec.maxUnavailable}", "50%"),
    (
        "priorityclass pc --value=1000 --description=high --preemption-policy=Never",
        "pc pc",
        "{.value} {.preemptionPolicy}",
        "1000 Never",
    ),
    ("quota q --hard=pods=2 --scopes=BestEffort", "quota q", "{.spec.hard.pods} {.spec.scopes[0]}", "2 BestEffort"),
    ("service clusterip s1 --tcp=80:8080", "service s1", "{.spec.ports[0].targetPort}", "8080"),
    ("service clusterip headless --clusterip=None", "service headless", "{.spec.clusterIP}", "None"),
    ("service nodeport s2 --tcp=80 --node-port=30088", "service s2", "{.spec.ports[0].nodePort}", "30088"),
    ("service loadbalancer s3 --tcp=80", "service s3", "{.spec.type}", "LoadBalancer"),
    ("service externalname s4 --external-name=example.com", "service s4", "{.spec.externalName}", "example.com"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_generator_makes_its_object() {
    for kubectl in harness::kubectls() {
        let cluster = Cluster::start().await;
        let folder = cluster.folder.path().display().to_string();
        std::fs::write(cluster.folder.path().join("env"), "KEY=value\n").unwrap();
        let mut wrong = Vec::new();
        for (line, object, path, text) in GENERATORS {
            let create = format!("create {}", line.replace("FOLDER", &folder));
            // What comes after `--` is the container's.
            let (flags, rest) = create
                .split_once(" -- ")
                .map_or((create.as_str(), String::new()), |(flags, rest)| (flags, format!(" -- {rest}")));
            let dry = format!("{flags} --dry-run=server{rest}");
            let get = format!("get {object} -o jsonpath={}", path.replace(' ', "~"));
            let steps = [(dry.as_str(), "", "created (server dry run)"), (&create, "", "created"), (&get, "", *text)];
            wrong.extend(cluster.wrong(&kubectl, &steps).await);
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_made_and_believed() {
    for kubectl in harness::kubectls() {
        let cluster = Cluster::start().await;
        let run = async |line: &str| {
            let args: Vec<&str> = line.split(' ').collect();
            cluster.run_with(&kubectl, "admin", &args, "").await.unwrap()
        };
        run("create serviceaccount sa").await;
        let short = run("create token sa --duration=10m").await;
        cluster.kubeconfig_with_token("sa", short.trim());
        let refused = cluster.run("sa", &["get", "pods"], "").await.unwrap_err();
        assert!(refused.contains("\"system:serviceaccount:default:sa\" cannot list resource \"pods\""), "{refused}");
        run("create secret generic held --from-literal=a=b").await;
        let bound = run("create token sa --bound-object-kind=Secret --bound-object-name=held").await;
        cluster.kubeconfig_with_token("bound", bound.trim());
        let refused = cluster.run("bound", &["get", "pods"], "").await.unwrap_err();
        assert!(refused.contains("Forbidden"), "{refused}");
        // Another audience's token is nobody's here, and neither is that of an object that is gone.
        let foreign = run("create token sa --audience=elsewhere").await;
        run("delete secret held").await;
        for (file, token) in [("foreign", foreign.trim()), ("bound", bound.trim())] {
            cluster.kubeconfig_with_token(file, token);
            let refused = cluster.run(file, &["get", "--raw", "/api/v1/pods"], "").await.unwrap_err();
            assert!(refused.contains("Unauthorized"), "{file}: {refused}");
        }
        let short =
            cluster.run_with(&kubectl, "admin", &["create", "token", "sa", "--duration=1s"], "").await.unwrap_err();
        assert!(short.contains("may not specify a duration less than 10 minutes"), "{short}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generators_say_what_is_wrong() {
    let cluster = Cluster::start().await;
    let newest = harness::kubectls().pop().unwrap();
    cluster.kubectl(&["create", "namespace", "n"]).await;
    for (line, words) in [
        ("create namespace n", "Error from server (AlreadyExists): namespaces \"n\" already exists"),
        (
            "create namespace N_n",
            "The Namespace \"N_n\" is invalid: metadata.name: Invalid value: \"N_n\": a lowercase RFC 1123 label",
        ),
        ("create quota q --hard=cpu=1 --scopes=BestEffort", "unsupported scope applied to resource"),
        (
            "create service nodeport s --tcp=80 --node-port=1",
            "provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
        (
            "create priorityclass pc --value=2000000000",
            "maximum allowed value of a user defined priority is 1000000000",
        ),
        ("create rolebinding rb --clusterrole=view --user=", ""),
        ("create cronjob c --image=i --schedule=never", "Invalid value: \"never\""),
        ("create deployment d --image=i -n nowhere", "namespaces \"nowhere\" not found"),
        ("create token nobody", "serviceaccounts \"nobody\" not found"),
        ("create configmap c --from-literal=a~b=c", "a valid config key must consist of alphanumeric characters"),
    ] {
        let args: Vec<String> = line.split(' ').map(|word| word.replace('~', " ")).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match cluster.run_with(&newest, "admin", &args, "").await {
            Err(said) if said.contains(words) => {}
            // kubectl itself takes an empty user.
            Ok(_) if words.is_empty() => {}
            other => panic!("{line}: {other:?}"),
        }
    }
}
