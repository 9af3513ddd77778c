//! The language, instruction by instruction.
#![allow(clippy::unwrap_used)]

use super::*;

fn only(text: &str) -> Instruction {
    let file = Dockerfile::parse(&format!("FROM scratch\n{text}")).unwrap();
    file.stages[0].instructions[0].value.clone()
}

fn wrong(text: &str) -> String {
    let text = format!("FROM scratch\n{text}");
    Dockerfile::parse(&text).unwrap_err().show("Dockerfile", &text)
}

fn shell(text: &str) -> Command {
    Command::Shell(text.to_owned())
}

#[test]
fn lines_go_on_and_comments_do_not_count() {
    let file = Dockerfile::parse(
        "# syntax=docker/dockerfile:1\n# escape=`\n\nARG V=1\nFROM base:$V AS Build\nRUN a `\n  # not this\n\n  b `` \nrun c\\",
    )
    .unwrap();
    assert_eq!((file.escape, file.syntax.as_deref()), ('`', Some("docker/dockerfile:1")));
    let stage = &file.stages[0];
    assert_eq!((stage.base.as_str(), stage.name.as_deref()), ("base:$V", Some("build")));
    let runs: Vec<&str> = stage.instructions.iter().map(|instruction| instruction.text.as_str()).collect();
    assert_eq!(runs, ["RUN a   b ``", "run c\\"]);
    assert_eq!(stage.instructions[0].lines, (6, 9));
    assert_eq!(file.warnings, ["line 8: empty line in a continued instruction"]);
}

#[test]
fn here_documents_belong_to_their_instruction() {
    let Instruction::Run(run) = only("RUN <<-EOF cat > \"x y\"\n\t\tone $A\n\tEOF\n") else { panic!() };
    assert_eq!(run.heredocs[0].content, "one $A\n");
    assert!(run.heredocs[0].chomp && run.heredocs[0].expand);
    let Instruction::Copy(copy) = only("COPY <<\"A\" b <<C /to/\n'a'\nA\nc\nC") else { panic!() };
    let Source::Inline(first) = &copy.sources[0] else { panic!() };
    assert_eq!((first.content.as_str(), first.expand), ("'a'\n", false));
    assert_eq!(copy.sources[1], Source::Path("b".into()));
    let Source::Inline(last) = &copy.sources[2] else { panic!() };
    assert_eq!((last.content.as_str(), last.expand), ("c\n", true));
    // Not a document: too many, or not a word.
    let Instruction::Run(run) = only("RUN cat <<< word") else { panic!() };
    assert!(run.heredocs.is_empty());
    assert!(wrong("RUN <<EOF\nx").contains("unterminated heredoc"));
}

#[test]
fn commands_are_programs_or_lines() {
    assert_eq!(only("CMD [\"a\", \"b c\"]"), Instruction::Cmd(Command::Exec(vec!["a".into(), "b c".into()])));
    assert_eq!(only("CMD ['a']"), Instruction::Cmd(shell("['a']")));
    assert_eq!(only("CMD --version"), Instruction::Cmd(shell("--version")));
    assert!(wrong("CMD [1]").contains("comprised of strings only"));
    assert!(wrong("SHELL sh").contains("JSON form"));
}

#[test]
fn flags_are_known_and_have_values() {
    let Instruction::Copy(copy) =
        only("COPY --from=a --chown=\"u:g\" --chmod=755 --link --exclude=*.o --exclude=b x /y")
    else {
        panic!()
    };
    assert_eq!(
        (copy.from.as_deref(), copy.chown.as_deref(), copy.chmod.as_deref()),
        (Some("a"), Some("u:g"), Some("755"))
    );
    assert!(copy.link && !copy.parents);
    assert_eq!(copy.exclude, ["*.o", "b"]);
    let Instruction::Run(run) = only("RUN --mount=type=cache,target=/c --network=none -- --x") else { panic!() };
    assert_eq!((run.mounts, run.network.as_deref()), (vec!["type=cache,target=/c".to_owned()], Some("none")));
    assert_eq!(run.command, shell("--x"));
    assert!(wrong("COPY --form=a x y").contains("unknown flag: --form (did you mean from?)"));
    assert!(wrong("COPY --from x y").contains("missing a value"));
    assert!(wrong("COPY --link=maybe x y").contains("boolean"));
    assert!(wrong("RUN --network=hots x").contains("did you mean host?"));
}

#[test]
fn pairs_have_two_forms() {
    let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(
        only("ENV a=1 b=\"2 3\" c=x\\ y"),
        Instruction::Env(pairs(&[("a", "1"), ("b", "\"2 3\""), ("c", "x\\ y")]))
    );
    assert_eq!(only("ENV a  b c"), Instruction::Env(pairs(&[("a", "b c")])));
    assert_eq!(only("ARG a b=1"), Instruction::Arg(vec![("a".into(), None), ("b".into(), Some("1".into()))]));
    assert!(wrong("ENV a").contains("two arguments"));
    assert!(wrong("LABEL a=1 b").contains("can't find = in \"b\""));
}

#[test]
fn health_is_checked_in_its_own_words() {
    let Instruction::Healthcheck(health) = only("HEALTHCHECK --interval=1m30s --retries=3 CMD curl x") else {
        panic!()
    };
    assert_eq!(health.command, Some(shell("curl x")));
    assert_eq!((health.interval.unwrap().as_secs(), health.retries), (90, Some(3)));
    assert_eq!(only("HEALTHCHECK NONE"), Instruction::Healthcheck(Health::default()));
    assert!(wrong("HEALTHCHECK --interval=soon CMD x").contains("invalid duration"));
    assert!(wrong("HEALTHCHECK curl").contains("unknown type"));
}

#[test]
fn mistakes_are_shown_where_they_are() {
    let text = "FROM scratch\n\nRUN a\n\tRUNN b\nRUN c\n";
    let shown = Dockerfile::parse(text).unwrap_err().show("app/Dockerfile", text);
    assert_eq!(
        shown,
        "app/Dockerfile:4:2: unknown instruction: RUNN (did you mean RUN?)\n  2 | \n  3 | RUN a\n> 4 | \tRUNN b\n    | \t^^^^\n  5 | RUN c\n"
    );
    let text = "FROM a \\\n  as 1x\n";
    assert!(Dockerfile::parse(text).unwrap_err().show("D", text).starts_with("D:2:6: invalid name for build stage"));
    assert!(Dockerfile::parse("RUN x").unwrap_err().message.contains("no build stage"));
    assert!(Dockerfile::parse("# nothing\n").unwrap_err().message.contains("no FROM"));
    assert!(Dockerfile::parse("# escape=x\nFROM a").unwrap_err().message.contains("invalid escape token"));
    assert!(wrong("ONBUILD FROM x").contains("isn't allowed"));
    assert!(wrong("ONBUILD ONBUILD RUN x").contains("chaining"));
    assert!(wrong("COPY x").contains("at least two arguments"));
    assert!(wrong("WORKDIR").contains("at least one argument"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(?s)(FROM |RUN |COPY |ENV |ARG |<<|EOF|--|=|\\$\\{|\\}|\"|'|\\\\|\n| |#|\\[|\\]|[a-z]|.){0,60}") {
        if let Err(mistake) = Dockerfile::parse(&text) {
            mistake.show("Dockerfile", &text);
        }
        let _ = word(&text, '\\', &|_| Some("x y".into()));
        let _ = words(&text, '`', &|_| None);
    }
}
