use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> Dockerfile {
    Dockerfile::parse("Dockerfile", text.as_bytes()).unwrap()
}

/// The one instruction behind `FROM x`.
fn kind(line: &str) -> InstructionKind {
    parsed(&format!("FROM x\n{line}"))
        .instructions
        .pop()
        .unwrap()
        .kind
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn instructions_are_read_in_all_their_forms() {
    use InstructionKind as Kind;
    let table = [
        (
            "ENV a=b c='d e'",
            Kind::Env(pairs(&[("a", "b"), ("c", "'d e'")])),
        ),
        ("ENV a b c", Kind::Env(pairs(&[("a", "b c")]))),
        (
            "env A=\"b\" \\\n C=d",
            Kind::Env(pairs(&[("A", "\"b\""), ("C", "d")])),
        ),
        (
            "LABEL a.b=\"c d\"",
            Kind::Label(pairs(&[("a.b", "\"c d\"")])),
        ),
        (
            "ARG a b=c",
            Kind::Arg(vec![
                ("a".to_owned(), None),
                ("b".to_owned(), Some("c".to_owned())),
            ]),
        ),
        ("WORKDIR /a b", Kind::Workdir("/a b".to_owned())),
        ("USER 1:2", Kind::User("1:2".to_owned())),
        ("CMD", Kind::Cmd(CommandLine::Shell(String::new()))),
        ("CMD []", Kind::Cmd(CommandLine::Exec(Vec::new()))),
        (
            "CMD [\"a\", \"b\"]",
            Kind::Cmd(CommandLine::Exec(words(&["a", "b"]))),
        ),
        (
            "CMD ['a']",
            Kind::Cmd(CommandLine::Shell("['a']".to_owned())),
        ),
        (
            "ENTRYPOINT a b",
            Kind::Entrypoint(CommandLine::Shell("a b".to_owned())),
        ),
        (
            "SHELL [\"/bin/bash\", \"-c\"]",
            Kind::Shell(words(&["/bin/bash", "-c"])),
        ),
        ("EXPOSE 80 443/tcp", Kind::Expose(words(&["80", "443/tcp"]))),
        ("VOLUME /a /b", Kind::Volume(words(&["/a", "/b"]))),
        ("VOLUME [\"/a b\"]", Kind::Volume(words(&["/a b"]))),
        ("STOPSIGNAL SIGINT", Kind::StopSignal("SIGINT".to_owned())),
        (
            "RUN --network=host a --b",
            Kind::Run {
                command: CommandLine::Shell("a --b".to_owned()),
                heredocs: Vec::new(),
                network: Some("host".to_owned()),
            },
        ),
        (
            "COPY --from=build --chown=1:2 --chmod=755 --link a b /c/",
            Kind::Copy(CopyInstruction {
                sources: words(&["a", "b"]),
                destination: "/c/".to_owned(),
                from: Some("build".to_owned()),
                chown: Some("1:2".to_owned()),
                chmod: Some("755".to_owned()),
                ..CopyInstruction::default()
            }),
        ),
        (
            "ADD [\"a b\", \"/c\"]",
            Kind::Copy(CopyInstruction {
                is_add: true,
                sources: words(&["a b"]),
                destination: "/c".to_owned(),
                ..CopyInstruction::default()
            }),
        ),
        (
            "COPY <<one --exclude=x <<'two' c /d/\n1\none\n$2\ntwo",
            Kind::Copy(CopyInstruction {
                sources: words(&["--exclude=x", "c"]),
                destination: "/d/".to_owned(),
                heredocs: vec![
                    Heredoc {
                        name: "one".to_owned(),
                        content: "1\n".to_owned(),
                        expand: true,
                    },
                    Heredoc {
                        name: "two".to_owned(),
                        content: "$2\n".to_owned(),
                        expand: false,
                    },
                ],
                ..CopyInstruction::default()
            }),
        ),
    ];
    for (line, expected) in table {
        assert_eq!(kind(line), expected, "{line:?}");
    }
    assert!(matches!(
        kind("HEALTHCHECK --interval=5s CMD x"),
        Kind::Ignored(_)
    ));
    let InstructionKind::From {
        image,
        name,
        platform,
    } = &parsed("FROM --platform=$P a:$B aS Build").instructions[0].kind
    else {
        panic!("no FROM");
    };
    assert_eq!(
        (image.as_str(), name.as_deref(), platform.as_deref()),
        ("a:$B", Some("build"), Some("$P"))
    );
}

#[test]
fn errors_name_the_line_and_say_what_to_do() {
    let files = [
        "",
        "# nothing\n",
        "RUN x",
        "FROM x\nCPOY a b",
        "FROM x\nRUM ls",
        "FROM x\nFOO bar",
        "FROM",
        "FROM a b",
        "FROM a AS 1",
        "FROM a AS scratch",
        "FROM x\nRUN",
        "FROM x\nRUN []",
        "FROM x\nRUN --mount=type=cache,target=/x y",
        "FROM x\nRUN --network=bridge y",
        "FROM x\nRUN [\"a\", 1]",
        "FROM x\n\n\nCOPY a",
        "FROM x\nCOPY a b c",
        "FROM x\nCOPY --from a b",
        "FROM x\nCOPY --chown=a --chown=b a b",
        "FROM x\nCOPY --parents a b/",
        "FROM x\nADD https://example.org/x /",
        "FROM x\nADD --from=y a b",
        "FROM x\nENV a",
        "FROM x\nENV a=b c",
        "FROM x\nENV =b",
        "FROM x\nARG =b",
        "FROM x\nSHELL /bin/bash -c",
        "FROM x\nWORKDIR",
        "FROM x\nVOLUME [\"\"]",
        "FROM x\nRUN <<EOF\necho",
        "# escape=x\nFROM x",
    ];
    let mut table = String::new();
    for file in files {
        let error = Dockerfile::parse("app/Dockerfile", file.as_bytes()).unwrap_err();
        writeln!(table, "{file:?}\n  {error}").unwrap();
        if !error.text.is_empty() {
            writeln!(table, "  in: {}", error.text).unwrap();
        }
        if let Some(hint) = &error.hint {
            writeln!(table, "  hint: {hint}").unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn what_is_not_text_or_too_long_is_refused() {
    let error = Dockerfile::parse("D", b"FROM x\nRUN \xff").unwrap_err();
    assert_eq!(error.to_string(), "D:2: the line is not UTF-8");
    assert!(Dockerfile::parse("D", &vec![b'\n'; MAXIMUM_BYTES + 1]).is_err());
    let many = format!("FROM x\n{}", "USER y\n".repeat(MAXIMUM_INSTRUCTIONS));
    assert!(Dockerfile::parse("D", many.as_bytes()).is_err());
}

/// Dockerfiles as people write them: each in `corpus/`, read to the same instructions every time.
#[test]
fn typical_files_are_read_as_they_always_were() {
    let corpus = [
        ("python", include_str!("corpus/python")),
        ("node", include_str!("corpus/node")),
        ("go", include_str!("corpus/go")),
        ("debian", include_str!("corpus/debian")),
        ("heredocs", include_str!("corpus/heredocs")),
        ("windows", include_str!("corpus/windows")),
    ];
    for (name, text) in corpus {
        insta::assert_debug_snapshot!(name, parsed(text));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ignored = Dockerfile::parse("D", &bytes);
    }

    #[test]
    fn no_lines_make_it_panic(
        lines in proptest::collection::vec(
            ("(FROM|RUN|COPY|ADD|ENV|ARG|LABEL|SHELL|VOLUME|CMD|# escape=) ?", "[a <\\-='\"\\[\\]{}$`\\\\,/.EOF]{0,24}"),
            0..8,
        )
    ) {
        let text = lines.iter().map(|(name, rest)| format!("{name}{rest}")).collect::<Vec<_>>().join("\n");
        let _ignored = Dockerfile::parse("D", text.as_bytes());
        let _ignored = Dockerfile::parse("D", format!("FROM x\n{text}").as_bytes());
    }

    #[test]
    fn every_instruction_is_on_a_line_of_the_file(
        lines in proptest::collection::vec("(RUN a|RUN b \\\\|  c|# d||ENV e=f)", 0..12)
    ) {
        let text = format!("FROM x\n{}", lines.join("\n"));
        if let Ok(file) = Dockerfile::parse("D", text.as_bytes()) {
            let count = text.split('\n').count();
            let numbers: Vec<usize> = file.instructions.iter().map(|instruction| instruction.line).collect();
            prop_assert!(numbers.iter().all(|number| (1..=count).contains(number)));
            prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
