//! The images that `rootfs/build` makes: hello-world in every language, by a user without any privilege and under the
//! default limits.

use std::time::Duration;

use sbxrt_tests::{Identity, Sbxrt, languages};

/// Runs a script of the image's shell that reads the program from its standard input; what it wrote.
fn hello(language: &str, script: &str, program: &str) {
    let Some(store) = languages() else { return };
    // The store belongs to whoever built it.
    let owner = Identity::ordinary();
    let sbxrt = Sbxrt::new(owner);
    // A reference has no plus sign.
    let image = format!("localhost/{}", language.replace('+', "p"));
    let arguments = ["-i", &image, "sh", "-ec", script];
    let output = sbxrt
        .run(arguments)
        .env("SBXRT_STORE", store)
        .stdin(program)
        .deadline(Duration::from_secs(120))
        .output();
    assert_eq!(
        output.success(),
        format!("hello from {language}\n"),
        "{output}"
    );
}

#[test]
fn bash_says_hello() {
    hello(
        "bash",
        "exec bash",
        include_str!("../../rootfs/bash/hello.sh"),
    );
}

#[test]
fn c_plus_plus_says_hello() {
    let script = "g++ -x c++ -o /tmp/hello - && exec /tmp/hello";
    hello("c++", script, include_str!("../../rootfs/c++/hello.cpp"));
}

#[test]
fn go_says_hello() {
    let script = "cat >/tmp/hello.go && exec go run /tmp/hello.go";
    hello("go", script, include_str!("../../rootfs/go/hello.go"));
}

#[test]
fn java_says_hello() {
    let script = "cat >/tmp/Hello.java && exec java /tmp/Hello.java";
    hello("java", script, include_str!("../../rootfs/java/Hello.java"));
}

#[test]
fn node_says_hello() {
    hello(
        "node",
        "exec node -",
        include_str!("../../rootfs/node/hello.js"),
    );
}

/// It imports numpy, pandas, scipy, matplotlib, plotly and ipython, and draws a plot into a file.
#[test]
fn python_says_hello_and_draws_a_plot() {
    hello(
        "python",
        "exec python3 -",
        include_str!("../../rootfs/python/hello.py"),
    );
}

#[test]
fn r_says_hello() {
    hello(
        "r",
        "cat >/tmp/hello.R && exec Rscript /tmp/hello.R",
        include_str!("../../rootfs/r/hello.R"),
    );
}

#[test]
fn ruby_says_hello() {
    hello(
        "ruby",
        "exec ruby -",
        include_str!("../../rootfs/ruby/hello.rb"),
    );
}
