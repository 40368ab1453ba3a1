using System;
using System.Collections.Concurrent;
using System.Diagnostics;
using System.IO;
using System.Runtime.InteropServices;
using System.Threading;
using System.Threading.Tasks;
using Grpc.Core;
using Grpc.Health.V1;
using Grpc.Net.Client;
using TileCache.V1;
using Xunit;

namespace TileCache.Client.Tests
{
    /// <summary>
    /// A running daemon with a PostgreSQL of its own, and a client on its Unix socket. The program is
    /// <c>$TILECACHE_BIN</c>, else <c>.venv/bin/tilecache</c> of the repository.
    /// </summary>
    public sealed class Daemon : IAsyncLifetime, IDisposable
    {
        private const int Sigterm = 15;

        private static readonly TimeSpan StartTimeout = TimeSpan.FromSeconds(90);
        private static readonly TimeSpan StopTimeout = TimeSpan.FromSeconds(30);
        private static readonly TimeSpan PollInterval = TimeSpan.FromMilliseconds(50);

        // Not closed to other users: as root, the daemon runs PostgreSQL as another one.
        private readonly DirectoryInfo directory = Directory.CreateDirectory(
            Path.Combine(Path.GetTempPath(), "tilecache-" + Path.GetRandomFileName()));

        private readonly ConcurrentQueue<string> log = new ConcurrentQueue<string>();
        private readonly GrpcChannel channel;
        private Process? process;

        public Daemon()
        {
            channel = TileCacheChannel.Open(SocketPath);
            Store = new TileMetadataStore.TileMetadataStoreClient(channel);
        }

        /// <summary>The deadline of a call that is expected to succeed.</summary>
        public static DateTime Soon => DateTime.UtcNow.AddSeconds(30);

        public TileMetadataStore.TileMetadataStoreClient Store { get; }

        private string SocketPath => Path.Combine(directory.FullName, "tilecache.sock");

        public async Task InitializeAsync()
        {
            process = StartProcess();
            using var timeout = new CancellationTokenSource(StartTimeout);
            while (!await IsServingAsync(timeout.Token))
            {
                if (process.HasExited || timeout.IsCancellationRequested)
                {
                    throw new InvalidOperationException(
                        "The daemon does not serve. It says:\n" + string.Join('\n', log));
                }

                await Task.Delay(PollInterval);
            }
        }

        public async Task DisposeAsync()
        {
            if (process is null || process.HasExited || SendSignal(process.Id, Sigterm) != 0)
            {
                return;
            }

            using var timeout = new CancellationTokenSource(StopTimeout);
            await process.WaitForExitAsync(timeout.Token);
        }

        public void Dispose()
        {
            channel.Dispose();
            if (process != null && !process.HasExited)
            {
                process.Kill(entireProcessTree: true);
                process.WaitForExit();
            }

            process?.Dispose();
            directory.Delete(recursive: true);
        }

        private Process StartProcess()
        {
            var start = new ProcessStartInfo(FindProgram(), "serve")
            {
                RedirectStandardOutput = true,
                RedirectStandardError = true,
            };
            start.Environment["TILECACHE_SOCKET_PATH"] = SocketPath;
            start.Environment["TILECACHE_ADMIN_SOCKET_PATH"] = Path.Combine(directory.FullName, "admin.sock");
            start.Environment["TILECACHE_STATE_DIRECTORY"] = Path.Combine(directory.FullName, "state");
            start.Environment.Remove("TILECACHE_CONFIG");
            start.Environment.Remove("TILECACHE_DSN");
            start.Environment.Remove("DB_URL");

            var started = new Process { StartInfo = start };
            started.OutputDataReceived += (_, line) => log.Enqueue(line.Data ?? string.Empty);
            started.ErrorDataReceived += (_, line) => log.Enqueue(line.Data ?? string.Empty);
            started.Start();
            started.BeginOutputReadLine();
            started.BeginErrorReadLine();
            return started;
        }

        private async Task<bool> IsServingAsync(CancellationToken cancellationToken)
        {
            var request = new HealthCheckRequest { Service = TileMetadataStore.Descriptor.FullName };
            try
            {
                HealthCheckResponse answer = await new Health.HealthClient(channel).CheckAsync(
                    request, deadline: Soon, cancellationToken: cancellationToken);
                return answer.Status == HealthCheckResponse.Types.ServingStatus.Serving;
            }
            catch (RpcException)
            {
                return false;
            }
        }

        private static string FindProgram()
        {
            string? named = Environment.GetEnvironmentVariable("TILECACHE_BIN");
            if (!string.IsNullOrEmpty(named))
            {
                return named;
            }

            for (var folder = new DirectoryInfo(AppContext.BaseDirectory); folder != null; folder = folder.Parent)
            {
                string program = Path.Combine(folder.FullName, ".venv", "bin", "tilecache");
                if (File.Exists(program))
                {
                    return program;
                }
            }

            throw new FileNotFoundException("No .venv/bin/tilecache above these tests: make install, or set TILECACHE_BIN.");
        }

        [DllImport("libc", EntryPoint = "kill")]
        private static extern int SendSignal(int processId, int signal);
    }
}
