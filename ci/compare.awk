# Compares runs of the conformance set with the first one: awk -f compare.awk REFERENCE RUN...
# Lines are: element operation problem hash. Prints a table of runs, and every case that differs.
function name(file) { sub(".*/", "", file); sub("\\.txt$", "", file); return file }
{ sub("\r$", "") }
FNR == 1 && NR > 1 { runs[++count] = name(FILENAME) }
NF != 4 { next }
{ key = $1 " " $2 " " $3 }
NR == FNR {
    if ($4 !~ /^[0-9a-f]+$/) { print "the reference has no hash of " key; bad = 1 }
    expected[key] = $4
    total++
    next
}
{
    run = runs[count]
    if ($4 == "skip") skipped[run]++
    else if ($4 == expected[key]) same[run]++
    else { differs[run]++; list[++listed] = sprintf("%-24s %-52s %s, expected %s", run, key, $4, expected[key]) }
}
END {
    printf "%-28s %6s %8s %8s   of %d cases\n", "run", "same", "differ", "skipped", total
    for (i = 1; i <= count; i++) {
        run = runs[i]
        printf "%-28s %6d %8d %8d\n", run, same[run], differs[run], skipped[run]
        # A run that compares nothing proves nothing.
        if (!same[run]) bad = 1
    }
    for (i = 1; i <= listed && i <= 200; i++) print (i == 1 ? "\n" : "") list[i]
    if (listed > 200) print "… and " listed - 200 " more"
    print listed ? "\n" listed " hashes differ" : "no hash differs"
    exit (listed || bad || !total) ? 1 : 0
}
