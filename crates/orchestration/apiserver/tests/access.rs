//! Who may do what: escalation, impersonation, and what a user is told about their rights.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Cluster;

/// A namespace's administrator: the `admin` role, bound by the cluster's administrator.
async fn jane(cluster: &Cluster) {
    cluster.kubeconfig("jane", "jane", &[]);
    cluster.kubectl(&["create", "rolebinding", "jane", "--clusterrole=admin", "--user=jane"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_grants_more_than_they_hold() {
    let cluster = Cluster::start().await;
    jane(&cluster).await;
    let own = ["create", "role", "mine", "--verb=get", "--resource=pods"];
    cluster.run("jane", &own, "").await.unwrap();
    let more = ["create", "role", "more", "--verb=list", "--verb=get", "--resource=nodes"];
    let refused = cluster.run("jane", &more, "").await.unwrap_err();
    assert!(
        refused.contains("user \"jane\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:"),
        "{refused}"
    );
    assert!(refused.contains("Resources:[\"nodes\"]"), "{refused}");
    cluster.run("jane", &["create", "rolebinding", "b", "--role=mine", "--user=joe"], "").await.unwrap();
    let all = ["create", "rolebinding", "all", "--clusterrole=cluster-admin", "--user=jane"];
    let refused = cluster.run("jane", &all, "").await.unwrap_err();
    assert!(refused.contains("rolebindings.rbac.authorization.k8s.io \"all\" is forbidden"), "{refused}");

    // `bind` and `escalate` allow it nonetheless.
    cluster
        .kubectl(&[
            "create",
            "role",
            "binder",
            "--verb=bind",
            "--resource=clusterroles.rbac.authorization.k8s.io",
            "--resource-name=cluster-admin",
        ])
        .await;
    cluster
        .kubectl(&["create", "role", "escalator", "--verb=escalate", "--resource=roles.rbac.authorization.k8s.io"])
        .await;
    for role in ["binder", "escalator"] {
        cluster.kubectl(&["create", "rolebinding", role, &format!("--role={role}"), "--user=jane"]).await;
    }
    cluster.run("jane", &more, "").await.unwrap();
    cluster.run("jane", &all, "").await.unwrap();
    // And takes effect at once.
    cluster.run("jane", &["create", "role", "any", "--verb=*", "--resource=*"], "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn acting_as_somebody_else() {
    let cluster = Cluster::start().await;
    jane(&cluster).await;
    assert_eq!(cluster.kubectl(&["auth", "can-i", "list", "pods", "--as=jane"]).await, "yes\n");
    let refused = cluster.run("admin", &["get", "nodes", "--as=jane"], "").await.unwrap_err();
    assert!(refused.contains("User \"jane\" cannot list resource \"nodes\""), "{refused}");
    let who = cluster.kubectl(&["auth", "whoami", "--as=system:serviceaccount:default:x", "-o", "yaml"]).await;
    assert!(who.contains("system:serviceaccounts:default") && who.contains("system:authenticated"), "{who}");
    let who = cluster.kubectl(&["auth", "whoami", "--as=ann", "--as-group=dev", "--as-uid=7", "-o", "yaml"]).await;
    assert!(who.contains("- dev") && who.contains("uid: \"7\""), "{who}");
    let refused = cluster.run("jane", &["get", "pods", "--as=ann"], "").await.unwrap_err();
    assert!(
        refused.contains("User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_can_be_listed() {
    let cluster = Cluster::start().await;
    jane(&cluster).await;
    let list = cluster.run("jane", &["auth", "can-i", "--list"], "").await.unwrap();
    assert!(list.contains("pods/exec") && list.contains("selfsubjectaccessreviews.authorization.k8s.io"), "{list}");
    let elsewhere = cluster.run("jane", &["auth", "can-i", "--list", "-n", "kube-system"], "").await.unwrap();
    assert!(!elsewhere.contains("pods/exec"), "{elsewhere}");
    assert!(cluster.run("jane", &["auth", "can-i", "delete", "secrets", "-n", "kube-system"], "").await.is_err());
}
