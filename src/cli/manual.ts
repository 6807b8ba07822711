/**
 * The manual (for man(1)) and completions for shells, out of the tables that the commands read: `blockplane manual`,
 * `blockplane completion bash`.
 */
import type { Command } from 'commander';
import { IMAGE_VERBS, PROGRAMS } from './programs.ts';
import { describedOptions, VERB_WORDS } from './qemu-img/verb-help.ts';
import { UsageError } from './report.ts';
import { packageVersion } from './version.ts';

interface DescribedCommand {
  readonly name: string;
  readonly summary: string;
  readonly usage: string;
  readonly options: readonly { readonly usage: string; readonly does: string; readonly flags: readonly string[] }[];
}

export function addManual(program: Command): void {
  program
    .command('completion')
    .description('print a script that completes command lines: for bash, zsh or fish')
    .argument('<SHELL>', 'bash, zsh or fish')
    .action(async (shell: string) => {
      const write = Object.hasOwn(SHELLS, shell) ? SHELLS[shell] : undefined;
      if (!write) throw new UsageError(`Unknown shell '${shell}': use one of ${Object.keys(SHELLS).join(', ')}`);
      process.stdout.write(write(await commandsOf(program)));
    });
  program
    .command('manual')
    .description("print the manual, for 'man -l -'")
    .action(async () => {
      process.stdout.write(manual(program.description(), await commandsOf(program)));
    });
}

async function commandsOf(program: Command): Promise<DescribedCommand[]> {
  const own = program.commands.map((command) => ({
    name: command.name(),
    summary: command.description(),
    usage: command.usage(),
    options: command.options.map(({ flags, description, short, long }) => ({
      ...{ usage: flags, does: description },
      flags: [short, long].filter((flag) => flag != null),
    })),
  }));
  const { VERBS } = await import('./qemu-img/program.ts');
  const verbs = IMAGE_VERBS.map(async (name) => {
    const { summary, operands } = VERB_WORDS[name]!;
    const options = describedOptions(name, await VERBS[name]!()).map(({ usage, does, def }) => ({
      ...{ usage, does },
      flags: [def.short && `-${def.short}`, def.long && `--${def.long}`].filter((flag) => flag !== undefined),
    }));
    return { name, summary, usage: `[options] ${operands}`, options };
  });
  const programs = Object.entries(PROGRAMS).map(([name, { summary }]) => {
    return { name, summary, usage: '[options]', options: [] };
  });
  return [...own, ...(await Promise.all(verbs)), ...programs].sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** Scripts by shell. */
const SHELLS: Readonly<Record<string, (commands: readonly DescribedCommand[]) => string>> = { bash, zsh, fish };

function cases(commands: readonly DescribedCommand[]): string {
  const withOptions = commands.filter(({ options }) => options.length > 0);
  return withOptions
    .map(({ name, options }) => `    ${name}) flags='${options.flatMap(({ flags }) => flags).join(' ')} --help' ;;\n`)
    .join('');
}

function bash(commands: readonly DescribedCommand[]): string {
  return `# Completion of blockplane for bash: eval "$(blockplane completion bash)"
_blockplane() {
  local word=\${COMP_WORDS[COMP_CWORD]} flags=''
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W '${commands.map(({ name }) => name).join(' ')} --help --version' -- "$word"))
    return
  fi
  case \${COMP_WORDS[1]} in
${cases(commands)}  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}
complete -o filenames -F _blockplane blockplane
`;
}

/** Inside single quotes of a shell. */
function quoted(text: string): string {
  return text.replaceAll("'", "'\\''");
}

function zsh(commands: readonly DescribedCommand[]): string {
  const list = commands
    .map(({ name, summary }) => `    '${name}:${quoted(summary).replaceAll(':', '\\:')}'\n`)
    .join('');
  return `#compdef blockplane
# Completion of blockplane for zsh: in a file _blockplane of a folder in $fpath, or eval "$(blockplane completion zsh)"
_blockplane() {
  local flags=''
  local -a commands
  commands=(
${list}  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case $words[2] in
${cases(commands)}  esac
  [[ $PREFIX == -* ]] && compadd -- \${=flags} || _files
}
compdef _blockplane blockplane
`;
}

function fish(commands: readonly DescribedCommand[]): string {
  const lines = commands.flatMap(({ name, summary, options }) => [
    `complete -c blockplane -n __fish_use_subcommand -a ${name} -d '${fishQuoted(summary)}'`,
    ...options.map(({ flags, does }) => {
      const names = flags.map((flag) => (flag.startsWith('--') ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`));
      const when = `__fish_seen_subcommand_from ${name}`;
      return `complete -c blockplane -n '${when}' ${names.join(' ')} -d '${fishQuoted(does)}'`;
    }),
  ]);
  return `# Completion of blockplane for fish: blockplane completion fish | source\n${lines.join('\n')}\n`;
}

function fishQuoted(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll("'", "\\'");
}

/** As text of roff: what begins a request or an escape is told from it. */
function roff(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll(/^([.'])/gm, '\\&$1');
}

/** For man(1). */
function manual(description: string, commands: readonly DescribedCommand[]): string {
  const sections = commands.map(({ name, summary, usage, options }) => {
    const list = options.map((option) => `.TP\n.B ${roff(option.usage)}\n${roff(option.does)}\n`).join('');
    return `.SS blockplane ${roff(name)} ${roff(usage)}\n${roff(summary)}\n${list}`;
  });
  return `.TH BLOCKPLANE 1 "" "blockplane ${packageVersion()}" "User Commands"
.SH NAME
blockplane \\- block storage for Node.js
.SH SYNOPSIS
.B blockplane
COMMAND [OPTIONS] [OPERANDS]
.SH DESCRIPTION
${roff(description)}.
Each command has \\-\\-help.
Commands that take the place of a program of QEMU have its options; they are run as well when blockplane is called by
its name.
Nothing is printed in colour.
.SH COMMANDS
${sections.join('')}.SH EXIT STATUS
0; 1 for a failure, and 2 for bad usage.
Commands of QEMU's have theirs: check 2 for corruptions, 3 for leaks, 63 where it cannot be; compare 1 where the images
differ, 2 and more for failures.
.SH SEE ALSO
The documents in the folder docs of the package.
`;
}
