"""Studies: what is compared (`schema`), read from YAML (`reading`), checked (`checking`), and on whom (`subjects`)."""
