fit <- lm(y ~ x, data.frame(x = 1:10, y = 2 * (1:10) + 1))
stopifnot(all.equal(unname(coef(fit)), c(1, 2)))
cat("hello from r\n")
