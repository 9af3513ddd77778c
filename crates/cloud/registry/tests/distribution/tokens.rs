//! Who may do what, through the token endpoint and with passwords.

use std::sync::Arc;

use base64::Engine as _;
use dhow_registry::{Config, Project, Projects, Role, Visibility, hash_secret};
use serde_json::Value;

use crate::harness::{Server, Web, image};

pub fn table() -> Projects {
    let table = Projects::default();
    let members = [("ci".to_owned(), Role::Developer), ("boss".to_owned(), Role::Maintainer)];
    for (name, visibility) in
        [("open", Visibility::Public), ("ours", Visibility::Shared), ("mine", Visibility::Private)]
    {
        table.set(name, Project { visibility, members: members.clone().into(), ..Project::default() });
    }
    for name in ["ci", "boss", "guest"] {
        table.set_robot(name, hash_secret(&format!("{name}-secret")));
    }
    table
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// As a client that was challenged does it.
async fn with_token(web: &Web, user: Option<&str>, scopes: &[&str]) -> Web {
    let query: Vec<String> = scopes.iter().map(|scope| format!("scope={scope}")).collect();
    let path = format!("/token?service=dhow&{}", query.join("&"));
    let asking = match user {
        Some(user) => web.with_authorization(&basic(user, &format!("{user}-secret"))),
        None => web.clone(),
    };
    let reply = asking.get(&path).await.expect(200).json();
    assert_eq!((&reply["token"], &reply["expires_in"]), (&reply["access_token"], &Value::from(600)));
    web.with_authorization(&format!("Bearer {}", reply["token"].as_str().unwrap()))
}

#[tokio::test]
async fn clients_are_challenged_and_get_what_they_may() {
    let server = Server::with(Config::default(), Arc::new(table())).await;
    let web = &server.web;
    let ping = web.get("/v2/").await.expect(401);
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"dhow\"", server.address);
    assert_eq!((ping.header("www-authenticate"), ping.code().as_str()), (Some(realm.as_str()), "UNAUTHORIZED"));
    let push = web.send("POST", "/v2/mine/app/blobs/uploads/", &[], "").await.expect(401);
    let challenge = push.header("www-authenticate").unwrap();
    assert_eq!(challenge, format!("{realm},scope=\"repository:mine/app:pull,push\""));
    let ci = with_token(web, Some("ci"), &["repository:mine/app:pull,push", "repository:open/app:push,pull"]).await;
    ci.get("/v2/").await.expect(200);
    ci.push_image("mine/app", "1", "x").await;
    ci.push_image("open/app", "1", "x").await;
    // What the token is not for, its user needs another one for.
    let other = ci.send("POST", "/v2/ours/app/blobs/uploads/", &[], "").await.expect(401);
    assert!(other.header("www-authenticate").unwrap().ends_with("error=\"insufficient_scope\""));
    ci.delete("/v2/mine/app/manifests/1").await.expect(401);
    let deletes = with_token(web, Some("ci"), &["repository:mine/app:delete"]).await;
    deletes.delete("/v2/mine/app/manifests/1").await.expect(401);
    let anonymous = with_token(web, None, &["repository:open/app:pull", "repository:mine/app:pull"]).await;
    for (client, repository, status) in
        [(&anonymous, "open/app", 200), (&anonymous, "mine/app", 401), (web, "open/app", 200), (web, "mine/app", 401)]
    {
        client.get(&format!("/v2/{repository}/manifests/1")).await.expect(status);
    }
    anonymous.send("POST", "/v2/open/app/blobs/uploads/", &[], "").await.expect(401);
    let boss = with_token(web, Some("boss"), &["repository:mine/app:*"]).await;
    boss.delete("/v2/mine/app/manifests/1").await.expect(202);
}

#[tokio::test]
async fn passwords_work_without_tokens() {
    let server = Server::with(Config::default(), Arc::new(table())).await;
    let web = &server.web;
    let ci = web.with_authorization(&basic("ci", "ci-secret"));
    ci.get("/v2/").await.expect(200);
    ci.push_image("ours/app", "1", "x").await;
    let guest = web.with_authorization(&basic("guest", "guest-secret"));
    guest.get("/v2/ours/app/manifests/1").await.expect(200);
    let refused = guest.put_manifest("ours/app", "2", &image(&["x"])).await.expect(403);
    assert_eq!(refused.code(), "DENIED");
    guest.get("/v2/mine/app/manifests/1").await.expect(403);
    for (user, password) in [("ci", "wrong"), ("nobody", "ci-secret"), ("", ""), ("ci", "")] {
        web.with_authorization(&basic(user, password)).get("/v2/").await.expect(401);
        let token = web.with_authorization(&basic(user, password)).get("/token?service=dhow").await.expect(401);
        assert!(token.header("www-authenticate").unwrap().starts_with("Basic realm="));
    }
    for nonsense in ["Basic !!", "Basic", "Bearer", "Bearer x.y.z", "Digest a=b", "basic Y2k="] {
        web.with_authorization(nonsense).get("/v2/").await.expect(401);
    }
}

#[tokio::test]
async fn tokens_are_also_given_for_forms_and_hold_in_all_servers() {
    let server = Server::with(Config::default(), Arc::new(table())).await;
    let web = &server.web;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let body = "grant_type=password&service=dhow&client_id=x&username=ci&password=ci-secret&scope=repository:mine/app:pull,push";
    let reply = web.send("POST", "/token", &form, body).await.expect(200).json();
    let ci = web.with_authorization(&format!("Bearer {}", reply["access_token"].as_str().unwrap()));
    ci.push_image("mine/app", "1", "x").await;
    web.send("POST", "/token", &form, body.replace("ci-secret", "wrong")).await.expect(401);
    web.send("POST", "/token", &form, "grant_type=authorization_code&code=x").await.expect(400);
    // What opens repositories gives no further tokens.
    let access = reply["access_token"].as_str().unwrap();
    web.send("POST", "/token", &form, format!("grant_type=refresh_token&refresh_token={access}")).await.expect(401);
    let strange = Server::with(Config::default(), Arc::new(table())).await;
    let there = strange.web.with_authorization(ci.authorization.as_deref().unwrap());
    there.get("/v2/").await.expect(401);
    let forged = ci.authorization.clone().unwrap();
    let (head, tail) = forged.rsplit_once('.').unwrap();
    web.with_authorization(&format!("{head}.{}", tail.chars().rev().collect::<String>())).get("/v2/").await.expect(401);
}

#[tokio::test]
async fn mounts_and_lists_tell_nothing_that_is_hidden() {
    let server = Server::with(Config::default(), Arc::new(table())).await;
    let web = &server.web;
    let ci = web.with_authorization(&basic("ci", "ci-secret"));
    ci.push_image("mine/app", "1", "secret").await;
    ci.push_image("open/app", "1", "known").await;
    let table = table();
    table.set("own", Project { members: [("guest".to_owned(), Role::Developer)].into(), ..Project::default() });
    let guest = web.with_authorization(&basic("guest", "guest-secret"));
    assert_eq!(guest.get("/v2/_catalog").await.expect(200).json()["repositories"], serde_json::json!(["open/app"]));
    assert_eq!(ci.get("/v2/_catalog").await.json()["repositories"], serde_json::json!(["mine/app", "open/app"]));
    let second = Server::over(
        Config::default(),
        Arc::new(table),
        Arc::new(dhow_store::MemoryKv::new()),
        tempfile::tempdir().unwrap(),
    )
    .await;
    let ci = second.web.with_authorization(&basic("ci", "ci-secret"));
    ci.push_image("mine/app", "1", "secret").await;
    ci.push_image("open/app", "1", "known").await;
    let guest = second.web.with_authorization(&basic("guest", "guest-secret"));
    for (content, from, status) in
        [("secret", "&from=mine/app", 202), ("secret", "", 202), ("known", "&from=open/app", 201), ("known", "", 201)]
    {
        let digest = dhow_image::Digest::of(content.as_bytes());
        let path = format!("/v2/own/app/blobs/uploads/?mount={digest}{from}");
        guest.send("POST", &path, &[], "").await.expect(status);
    }
}
