//! Plans of small files.
#![allow(clippy::unwrap_used)]

use super::*;

fn wanted() -> Wanted {
    let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
    Wanted {
        target: None,
        args: BTreeMap::new(),
        labels: BTreeMap::new(),
        platform: platform.clone(),
        builder: platform,
        contexts: Vec::new(),
    }
}

fn stage(text: &str, index: usize, wanted: &Wanted) -> Result<StagePlan, Mistake> {
    let file = Dockerfile::parse(text)?;
    let base = ImageConfig::scratch(&wanted.platform);
    Planner::new(&file, wanted)?.stage(index, &base)
}

fn plan(text: &str) -> StagePlan {
    stage(text, 0, &wanted()).unwrap()
}

fn histories(plan: &StagePlan) -> Vec<&str> {
    plan.items.iter().map(|item| item.history.as_str()).collect()
}

#[test]
fn variables_hold_where_they_are_declared() {
    let mut asked = wanted();
    asked.args = BTreeMap::from([("A".into(), "given".into()), ("HTTP_PROXY".into(), "p".into())]);
    let text = "ARG A=global\nARG B=${A}-b\nFROM base:${B} AS x\n\
                RUN echo $A\nARG A\nARG B\nARG C=${A:-none}$TARGETARCH\nENV A=env D=$A\nRUN x\nLABEL l=$A$B$C$D";
    let file = Dockerfile::parse(text).unwrap();
    let planner = Planner::new(&file, &asked).unwrap();
    let name = "base:given-b".to_owned();
    assert_eq!(planner.base(0).unwrap(), Origin::Image { name, platform: "linux/amd64".into() });
    let plan = planner.stage(0, &ImageConfig::scratch(&asked.platform)).unwrap();
    assert_eq!(
        histories(&plan),
        [
            "RUN /bin/sh -c echo $A",
            "ARG A",
            "ARG B",
            "ARG C=${A:-none}$TARGETARCH",
            "ENV A=env D=given",
            "RUN |2 B=given-b C=given /bin/sh -c x",
            "LABEL l=envgiven-bgivengiven"
        ]
    );
    let Some(Op::Run(run)) = &plan.items[0].op else { panic!() };
    assert!(run.env.contains(&"HTTP_PROXY=p".to_owned()) && !run.env.iter().any(|env| env.starts_with("A=")));
}

#[test]
fn platform_arguments_are_known() {
    let plan = plan("FROM --platform=$BUILDPLATFORM scratch\nARG TARGETPLATFORM\nENV P=$TARGETPLATFORM Q=$TARGETOS");
    assert_eq!(plan.config.config.env("P"), Some("linux/amd64"));
    assert_eq!(plan.config.config.env("Q"), Some(""));
}

#[test]
fn the_configuration_says_how_to_run_it() {
    let plan = plan(
        "FROM scratch\nWORKDIR /a\nWORKDIR b\nCMD one\nENTRYPOINT [\"two\"]\nEXPOSE 80 90-91/udp\nVOLUME /v\nUSER u:g\n\
         STOPSIGNAL SIGINT\nSHELL [\"bash\", \"-c\"]\nRUN three\nHEALTHCHECK --timeout=2s CMD four\nONBUILD RUN five\n\
         LABEL x=\"y z\"\nMAINTAINER me",
    );
    let config = &plan.config.config;
    assert_eq!((config.working_dir.as_str(), config.user.as_str()), ("/a/b", "u:g"));
    assert_eq!(config.cmd, Some(vec!["/bin/sh".into(), "-c".into(), "one".into()]));
    assert_eq!(config.entrypoint, Some(vec!["two".into()]));
    let ports: Vec<&String> = config.exposed_ports.keys().collect();
    assert_eq!(ports, ["80/tcp", "90/udp", "91/udp"]);
    assert_eq!(config.healthcheck.as_ref().unwrap().test, ["CMD-SHELL", "four"]);
    assert_eq!(config.healthcheck.as_ref().unwrap().timeout, 2_000_000_000);
    assert_eq!(config.on_build, ["RUN five"]);
    assert_eq!(config.labels["x"], "y z");
    assert_eq!(plan.config.author.as_deref(), Some("me"));
    let ran: Vec<&Op> = plan.items.iter().filter_map(|item| item.op.as_ref()).collect();
    assert_eq!(ran[0], &Op::Folder { path: "/a".into(), user: String::new() });
    let Op::Run(run) = ran[2] else { panic!() };
    assert_eq!(run.args, ["bash", "-c", "three"]);
}

#[test]
fn an_entrypoint_forgets_the_base_s_arguments() {
    let mut base = ImageConfig::scratch(&wanted().platform);
    base.config.cmd = Some(vec!["old".into()]);
    base.config.on_build = vec!["RUN trigger".into()];
    let file = Dockerfile::parse("FROM b\nENTRYPOINT [\"new\"]").unwrap();
    let wanted = wanted();
    let plan = Planner::new(&file, &wanted).unwrap().stage(0, &base).unwrap();
    assert_eq!((plan.config.config.cmd, plan.config.config.on_build.len()), (None, 0));
    assert_eq!(plan.items[0].text, "RUN trigger");
}

#[test]
fn stages_are_found_by_name_and_number() {
    let text = "FROM scratch AS one\nFROM one AS Two\nCOPY --from=one /a /b\nCOPY --from=0 /a /c\nCOPY --from=img /a /d\n\
                RUN --mount=from=ctx,target=/x --mount=target=/y --mount=type=tmpfs,target=z true\nFROM scratch";
    let mut asked = wanted();
    asked.contexts = vec!["ctx".into()];
    asked.target = Some("TWO".into());
    let file = Dockerfile::parse(text).unwrap();
    let planner = Planner::new(&file, &asked).unwrap();
    assert_eq!(planner.target().unwrap(), 1);
    let plan = planner.stage(1, &ImageConfig::scratch(&asked.platform)).unwrap();
    let image = Origin::Image { name: "img".into(), platform: "linux/amd64".into() };
    assert_eq!(
        plan.origins(),
        [
            &Origin::Stage(0),
            &Origin::Stage(0),
            &Origin::Stage(0),
            &image,
            &Origin::Context("ctx".into()),
            &Origin::Context(String::new())
        ]
    );
    asked.target = Some("tow".into());
    let error = Planner::new(&file, &asked).unwrap().target().unwrap_err();
    assert!(error.message.contains("did you mean two?"), "{error}");
    let error = stage("FROM scratch AS a\nCOPY --from=a x y", 0, &wanted()).unwrap_err();
    assert!(error.message.contains("circular"), "{error}");
}

#[test]
fn here_documents_become_lines_scripts_and_files() {
    let plan = plan(
        "FROM scratch\nARG V=v\nRUN <<EOF\na\nb\nEOF\nRUN <<S\n#!/bin/py\nx\nS\nRUN cat <<A > /f\nin $V\nA\n\
         COPY <<F <<'G' /d/\n\"$V\" \\$V \\n\nF\n$V\nG\n",
    );
    let run = |at: usize| match &plan.items[at].op {
        Some(Op::Run(run)) => run.clone(),
        _ => panic!(),
    };
    assert_eq!(run(1).args[2], "a\nb\n");
    assert_eq!(run(2).script, Some(("/dev/pipes/S".into(), "#!/bin/py\nx\n".into())));
    assert_eq!(run(3).args[2], "cat <<A > /f\nin $V\nA");
    let Some(Op::Copy(copy)) = &plan.items[4].op else { panic!() };
    let texts: Vec<&str> = copy.inline.iter().map(|heredoc| heredoc.content.as_str()).collect();
    assert_eq!(texts, ["\"v\" $V \\n\n", "$V\n"]);
}

#[test]
fn what_cannot_be_planned_says_where() {
    for (text, why) in [
        ("FROM scratch\nENV a=\"${b:?is missing}\"", "b: is missing"),
        ("FROM scratch\nCOPY a b /c", "must be a directory and end with a /"),
        ("FROM scratch\nCOPY --chmod=rwx a /c", "invalid chmod"),
        ("FROM scratch\nRUN --mount=type=cach,target=/x y", "did you mean cache?"),
        ("FROM scratch\nEXPOSE 99999", "invalid containerPort"),
        ("FROM ${nothing}", "should not be blank"),
        ("FROM --platform=x scratch", "failed to parse platform"),
    ] {
        let error = stage(text, 0, &wanted()).unwrap_err();
        assert!(error.message.contains(why), "{text}: {error}");
    }
    let bomb: String = (0..40).map(|_| "ENV a=$a$a$a$a\n").collect();
    let error = stage(&format!("FROM scratch\nENV a=aaaa\n{bomb}"), 0, &wanted()).unwrap_err();
    assert!(error.message.contains("longer than"), "{error}");
}
